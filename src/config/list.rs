//! One text or several: `memory`, or `[memory, nats]`.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// One text or several; a text may hold several, separated by commas.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct List(pub Vec<String>);

impl List {
    /// A list of one.
    pub fn one(text: &str) -> Self {
        List(vec![text.into()])
    }

    fn add(&mut self, text: &str) {
        self.0.extend(text.split(',').map(str::trim).filter(|t| !t.is_empty()).map(String::from));
    }
}

impl<'de> Deserialize<'de> for List {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = List;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or a list of texts")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<List, E> {
                let mut list = List::default();
                list.add(text);
                Ok(list)
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut texts: A) -> Result<List, A::Error> {
                let mut list = List::default();
                while let Some(text) = texts.next_element::<String>()? {
                    list.add(&text);
                }
                Ok(list)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl Serialize for List {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            [one] => serializer.serialize_str(one),
            many => many.serialize(serializer),
        }
    }
}
