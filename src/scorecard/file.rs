//! A scorecard as its author writes it: YAML, read strictly. A mistake is told with its place.

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    marker::PhantomData,
    path::Path,
};

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, Visitor, value::MapAccessDeserializer},
};

use super::{Bound, Fact, Level, Requirement, Scorecard, Test};
use crate::{
    config::{self, ConfigError, nearest},
    conformance::properties,
};

/// The version of a scorecard's schema.
pub const SCHEMA: &str = "queueproof/scorecard/1";

/// Reads a scorecard from a file.
///
/// # Errors
/// The first mistake, with its file, line and column, and what was expected.
pub fn read(path: &Path) -> Result<Scorecard, ConfigError> {
    parse(&config::text(path)?, &path.display())
}

/// Reads a scorecard from the text of a file of this name.
///
/// # Errors
/// The first mistake, with its file, line and column, and what was expected.
pub fn parse(text: &str, file: &dyn fmt::Display) -> Result<Scorecard, ConfigError> {
    config::parse_as(text, file)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawScorecard {
    schema: Schema,
    name: Words,
    about: Option<Words>,
    requirements: Vec<Requirement>,
}

/// A requirement, or one of several alternatives, which has only a test.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTest {
    name: Option<Words>,
    words: Option<Words>,
    level: Option<Level>,
    property: Option<Id>,
    properties: Option<Vec<Id>>,
    figure: Option<Figure>,
    cost: Option<Cost>,
    any: Option<Vec<Test>>,
    fact: Option<BTreeMap<String, Fact>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFigure {
    property: Id,
    name: Words,
    at_most: Option<f64>,
    at_least: Option<f64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCost {
    name: Words,
    at_most: Option<f64>,
    at_least: Option<f64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFact {
    meets: bool,
    words: Words,
    source: Words,
}

struct Figure(String, String, Bound);

struct Cost(String, Bound);

/// [`SCHEMA`].
struct Schema;

/// A text that is not empty.
struct Words(String);

/// The id of a property that there is.
struct Id(String);

fn scorecard(raw: RawScorecard) -> Result<Scorecard, String> {
    let RawScorecard { schema: Schema, name, about, requirements } = raw;
    let mut names = HashSet::new();
    if let Some(twice) = requirements.iter().find(|r| !names.insert(r.name.as_str())) {
        return Err(format!("requirements: the name {:?} is there twice", twice.name));
    }
    if !requirements.iter().any(|requirement| requirement.level == Level::Must) {
        // Whatever it is, a target would meet all of them.
        return Err("requirements: none is a must; expected one or more".into());
    }
    let about = about.map_or_else(String::new, |about| about.0);
    Ok(Scorecard { name: name.0, about, requirements })
}

fn requirement(mut raw: RawTest) -> Result<Requirement, String> {
    let missing = |key: &str| format!("a requirement has no {key}");
    Ok(Requirement {
        name: raw.name.take().ok_or_else(|| missing("name"))?.0,
        words: raw.words.take().ok_or_else(|| missing("words"))?.0,
        level: raw.level.take().ok_or_else(|| missing("level (must or should)"))?,
        test: test(raw)?,
    })
}

fn test(raw: RawTest) -> Result<Test, String> {
    if raw.name.is_some() || raw.words.is_some() || raw.level.is_some() {
        return Err("an alternative has a test and neither name nor words nor level".into());
    }
    let property = raw.property.map(|id| Test::Properties(vec![id.0]));
    let properties =
        raw.properties.map(|ids| Test::Properties(ids.into_iter().map(|id| id.0).collect()));
    let figure =
        raw.figure.map(|Figure(property, name, bound)| Test::Figure { property, name, bound });
    let cost = raw.cost.map(|Cost(name, bound)| Test::Cost { name, bound });
    let tests =
        [property, properties, figure, cost, raw.any.map(Test::Any), raw.fact.map(Test::Fact)];
    let mut tests: Vec<_> = tests.into_iter().flatten().collect();
    let count = tests.len();
    let test = tests.pop().filter(|_| count == 1).ok_or_else(|| {
        format!(
            "expected exactly one of property, properties, figure, cost, any and fact; there are \
             {count}"
        )
    })?;
    let is_empty = match &test {
        Test::Properties(ids) => ids.is_empty(),
        Test::Any(tests) => tests.is_empty(),
        Test::Fact(facts) => facts.is_empty(),
        Test::Figure { .. } | Test::Cost { .. } => false,
    };
    // Nothing at all would be met by anything.
    if is_empty { Err("the list is empty; expected one or more".into()) } else { Ok(test) }
}

fn bound(at_most: Option<f64>, at_least: Option<f64>) -> Result<Bound, String> {
    match (at_most, at_least) {
        (Some(most), None) if most.is_finite() => Ok(Bound::AtMost(most)),
        (None, Some(least)) if least.is_finite() => Ok(Bound::AtLeast(least)),
        (Some(_), Some(_)) | (None, None) => Err("expected either at_most or at_least".into()),
        _ => Err("a bound is a finite number".into()),
    }
}

fn figure(raw: RawFigure) -> Result<Figure, String> {
    Ok(Figure(raw.property.0, raw.name.0, bound(raw.at_most, raw.at_least)?))
}

fn cost(raw: RawCost) -> Result<Cost, String> {
    Ok(Cost(raw.name.0, bound(raw.at_most, raw.at_least)?))
}

fn fact(raw: RawFact) -> Result<Fact, String> {
    let (words, source) = (raw.words.0, raw.source.0);
    let rest = source.strip_prefix("https://").or_else(|| source.strip_prefix("http://"));
    match rest {
        Some(rest) if !rest.is_empty() => Ok(Fact { meets: raw.meets, words, source }),
        _ => Err(format!("source: {source:?} is no address; expected https://…")),
    }
}

fn schema(text: String) -> Result<Schema, String> {
    match text == SCHEMA {
        true => Ok(Schema),
        false => Err(format!("the schema is {text:?}; expected {SCHEMA:?}")),
    }
}

fn words(text: String) -> Result<Words, String> {
    if text.trim().is_empty() { Err("the text is empty".into()) } else { Ok(Words(text)) }
}

fn id(text: String) -> Result<Id, String> {
    if properties().any(|property| property.id == text) {
        return Ok(Id(text));
    }
    Err(match nearest(&text, properties().map(|property| property.id)) {
        Some(near) => format!("there is no property {text:?}; did you mean {near}?"),
        None => format!("there is no property {text:?}; see queueproof list properties"),
    })
}

/// Reads a raw form and makes of it what is meant. What is wrong with it then is said within the
/// visit, since only there the parser knows its place.
struct Checked<R, T>(fn(R) -> Result<T, String>, PhantomData<R>);

impl<'de, R: Deserialize<'de>, T> Visitor<'de> for Checked<R, T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("keys and values")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
        let raw = R::deserialize(MapAccessDeserializer::new(map))?;
        (self.0)(raw).map_err(A::Error::custom)
    }
}

/// The same of a text; of any value, so that a number is not taken for one.
struct Text<T>(fn(String) -> Result<T, String>);

impl<T> Visitor<'_> for Text<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
        (self.0)(text.into()).map_err(E::custom)
    }
}

macro_rules! checked {
    ($($what:ty = $method:ident($visitor:expr);)*) => {$(
        impl<'de> Deserialize<'de> for $what {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.$method($visitor)
            }
        }
    )*};
}

checked! {
    Scorecard = deserialize_map(Checked(scorecard, PhantomData));
    Requirement = deserialize_map(Checked(requirement, PhantomData));
    Test = deserialize_map(Checked(test, PhantomData));
    Figure = deserialize_map(Checked(figure, PhantomData));
    Cost = deserialize_map(Checked(cost, PhantomData));
    Fact = deserialize_map(Checked(fact, PhantomData));
    Schema = deserialize_any(Text(schema));
    Words = deserialize_any(Text(words));
    Id = deserialize_any(Text(id));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const GOOD: &str = "\
schema: queueproof/scorecard/1
name: mine
requirements:
  - name: once
    words: It is once.
    level: must
    property: dedup/across-publishers
  - name: more
    words: It is more.
    level: should
    any:
      - properties: [work-queue/lock, work-queue/join]
      - figure: {property: scheduling/lateness, name: agents, at_least: 20}
      - cost: {name: resident_mb, at_most: 0.5}
      - fact:
          nats: {meets: true, words: MIT, source: 'https://example.org'}
";

    #[test]
    fn every_kind_of_test_is_read() {
        let scorecard = parse(GOOD, &"a.yaml").unwrap();
        let [once, more] = scorecard.requirements.as_slice() else { unreachable!() };
        assert_eq!(once.test, Test::Properties(vec!["dedup/across-publishers".into()]));
        assert_eq!((once.level, more.level), (Level::Must, Level::Should));
        let Test::Any(tests) = &more.test else { unreachable!() };
        let fact = Fact { meets: true, words: "MIT".into(), source: "https://example.org".into() };
        let expected = [
            Test::Properties(vec!["work-queue/lock".into(), "work-queue/join".into()]),
            Test::Figure {
                property: "scheduling/lateness".into(),
                name: "agents".into(),
                bound: Bound::AtLeast(20.0),
            },
            Test::Cost { name: "resident_mb".into(), bound: Bound::AtMost(0.5) },
            Test::Fact([("nats".to_string(), fact)].into()),
        ];
        assert_eq!(tests, &expected);
    }

    #[test]
    fn a_mistake_is_told_with_its_place_and_what_was_expected() {
        let cases = [
            (
                "card/1",
                "card/2",
                "a.yaml:1:9: schema: the schema is \"queueproof/scorecard/2\"; expected",
            ),
            ("name: mine", "name: ''", "a.yaml:2:7: name: the text is empty"),
            (
                "level: must",
                "level: mst",
                "a.yaml:6:12: requirements[0].level: unknown variant `mst`",
            ),
            ("    level: must\n", "", "a.yaml:4:5: requirements[0]: a requirement has no level"),
            (
                "    words: It is once.\n",
                "",
                "a.yaml:4:5: requirements[0]: a requirement has no words",
            ),
            (
                "level: must",
                "levl: must",
                "a.yaml:6:5: requirements[0].levl: there is no such key; did you mean level?",
            ),
            (
                "across-publishers",
                "accross-publishers",
                "a.yaml:7:15: requirements[0].property: there is no property \"dedup/accross-publishers\"; did you mean dedup/across-publishers?",
            ),
            (
                "dedup/across-publishers",
                "7",
                "a.yaml:7:15: requirements[0].property: integer `7`, expected a text",
            ),
            (
                "scheduling/lateness",
                "scheduling/latenes",
                "requirements[1].any[1].figure.property: there is no property \"scheduling/latenes\"; did you mean scheduling/lateness?",
            ),
            (
                "    property: dedup/across-publishers\n",
                "",
                "expected exactly one of property, properties, figure, cost, any and fact; there are 0",
            ),
            (
                "    property: dedup/across-publishers\n",
                "    property: work-queue/lock\n    properties: [work-queue/join]\n",
                "a.yaml:4:5: requirements[0]: expected exactly one of property",
            ),
            ("[work-queue/lock, work-queue/join]", "[]", "the list is empty; expected one or more"),
            (
                "at_least: 20",
                "at_least: 20, at_most: 30",
                "a.yaml:13:17: requirements[1].any[1].figure: expected either at_most or at_least",
            ),
            (", at_least: 20", "", "expected either at_most or at_least"),
            ("at_least: 20", "at_least: .nan", "a bound is a finite number"),
            ("at_most: 0.5", "at_most: .inf", "a bound is a finite number"),
            (
                "at_most: 0.5",
                "at_most: little",
                "any[2].cost.at_most: invalid type: string \"little\", expected",
            ),
            (
                "https://example.org",
                "example.org",
                "source: \"example.org\" is no address; expected https://",
            ),
            ("meets: true, ", "", "missing field `meets`"),
            (
                "      - cost:",
                "      - name: x\n        cost:",
                "an alternative has a test and neither name nor words nor level",
            ),
            ("name: more", "name: once", "the name \"once\" is there twice"),
            ("level: must", "level: should", "requirements: none is a must; expected one or more"),
        ];
        for (good, bad, expected) in cases {
            assert!(GOOD.contains(good), "{good}");
            let error = parse(&GOOD.replacen(good, bad, 1), &"a.yaml").unwrap_err().to_string();
            assert!(error.contains(expected), "{good} → {bad}: {error}");
            assert!(error.starts_with("a.yaml:"), "{error}");
        }
        for (text, expected) in [
            ("", "missing field `schema`"),
            ("7", "expected keys and values"),
            ("schema: queueproof/scorecard/1\nname: x\nrequirements: []\n", "none is a must"),
            ("schema: queueproof/scorecard/1\nname: x\n", "missing field `requirements`"),
            ("a: &x 1\nb: *x\n", "anchors and aliases are not supported"),
        ] {
            let error = parse(text, &"a.yaml").unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
