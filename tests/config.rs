//! What is wrong in a configuration is told with its place, whatever it is.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{fs, time::Duration};

use proptest::prelude::*;
use queueproof::config::{Config, Layers, Profile, Selection};

/// The effective configuration of a file, or the error without the folder's name.
fn read(bytes: &[u8]) -> Result<Config, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("q.yaml");
    fs::write(&path, bytes).unwrap();
    let mut layers = Layers::default();
    layers.file(Some(path));
    let read = layers.merge().and_then(|config| config.plan(Selection::default()).map(|_| config));
    read.map_err(|e| e.to_string().replace(&format!("{}/", folder.path().display()), ""))
}

#[test]
fn a_mistake_is_told_with_its_place_and_what_was_expected() {
    let deep = format!("suite: {}", "[".repeat(100_000));
    let dashes = "- ".repeat(100_000);
    let cases: &[(&[u8], &str)] = &[
        (
            b"suite:\n  ack_timout: 1s\n",
            "q.yaml:2:3: suite.ack_timout: there is no such key; did you mean ack_timeout?",
        ),
        (
            b"suite:\n  messages: many\n",
            "q.yaml:2:13: suite.messages: invalid type: string \"many\", expected a whole number",
        ),
        (
            b"suite:\n  ack_timeout: 1 parsec\n",
            "q.yaml:2:16: suite.ack_timeout: invalid value: string \"1 parsec\", expected a duration",
        ),
        (b"jobs: 3\nseed: \xff\n", "q.yaml:2: byte 14 is not UTF-8 text"),
        (b"jobs: 3\n\0\n", "q.yaml:1:1: control characters are not allowed"),
        (b"jobs: 1\njobs: 2\n", "q.yaml:1:1: duplicate entry with key \"jobs\""),
        (b"jobs: 1\n---\njobs: 2\n", "more than one document"),
        (b"- a\n", "q.yaml:1:1: invalid type: sequence, expected keys and values"),
        (b"suite:\n\tmessages: 3\n", "q.yaml:2:1: found character that cannot start any token"),
        (b"memory: &a\n  max_payload: 2000\n", "q.yaml:1: anchors and aliases are not supported"),
        (deep.as_bytes(), "q.yaml:1: nested more than 32 deep"),
        (dashes.as_bytes(), "q.yaml:1: nested more than 32 deep"),
        (b"profile: quik\n", "unknown variant `quik`, expected `quick` or `full`"),
        (b"backend: natz\n", "backend: there is no \"natz\"; did you mean nats?"),
        (b"property: dedup/windw-expiry\n", "did you mean dedup/window-expiry?"),
        (b"suite:\n  ack_timeout: 1ms\n", "suite.ack_timeout: 1ms is not between 100ms and 1h"),
        (b"suite:\n  tolerance: 2s\n", "suite.tolerance: 2s is not between 10ms and 1s"),
        (b"jobs: 0\n", "jobs: 0 is not between 1 and 256"),
        (b"prefix: My Topics\n", "prefix: \"My Topics\" is not 1 to 12 characters of a-z and 0-9"),
        (b"targets:\n  ../x:\n    memory: {}\n", "targets: \"../x\" is not a name"),
        (b"targets:\n  x: {}\n", "targets.x: expected one of memory or nats or pulsar or nsq"),
        (
            b"targets:\n  x:\n    nats:\n      urll: x\n",
            "targets.x: urll: there is no such key; did you mean url?",
        ),
        (b"nats:\n  url: http://x\n", "nats.url: a NATS address begins with nats:// or tls://"),
    ];
    for (text, expected) in cases {
        let error = read(text).expect_err(expected);
        assert!(error.contains(expected), "expected {expected}\n   found {error}");
    }
}

#[test]
fn a_secret_in_a_configuration_is_refused_and_not_repeated() {
    for text in [
        "nats:\n  auth:\n    password: hunter2\n",
        "nats:\n  auth:\n    token: hunter2\n",
        "nats:\n  url: nats://me:hunter2@host\n",
        "nats:\n  url: nats://hunter2@host\n",
    ] {
        let error = read(text.as_bytes()).unwrap_err();
        assert!(!error.contains("hunter2"), "{error}");
        assert!(error.contains("nats."), "{error}");
    }
    let mut layers = Layers::default();
    layers.set_flag("nats.auth.password=hunter2").unwrap();
    assert!(!layers.merge().unwrap_err().to_string().contains("hunter2"));
}

#[test]
fn an_address_beside_the_brokers_own_holds_no_secret_either() {
    for text in [
        "pulsar:\n  url: pulsar://h\n  admin_url: http://me:hunter2@h:8080\n",
        "pulsar:\n  url: pulsar://h\n  admin_url: http://h:8080?token=hunter2\n",
        "pulsar:\n  auth:\n    oauth2:\n      issuer_url: https://me:hunter2@h/\n      credentials_file: f\n",
        "nsq:\n  url: nsq://h\n  http_url: http://me:hunter2@h:4151\n",
        "nsq:\n  url: nsq://h\n  lookupd: [\"http://me:hunter2@h:4161\"]\n",
    ] {
        let error = read(text.as_bytes()).expect_err(text);
        assert!(!error.contains("hunter2"), "{error}");
        assert!(error.contains("no user, password or query"), "{error}");
    }
}

#[test]
fn settings_of_pulsar_and_nsq_that_cannot_be_are_refused_before_anything_is_reached() {
    for (text, expected) in [
        ("pulsar:\n  namespace: .x\n", "pulsar: namespace: \".x\" is not a name"),
        ("pulsar:\n  tenant: a/b\n", "pulsar: tenant: \"a/b\" is not a name"),
        ("pulsar:\n  auth:\n    oauth2: {}\n", "missing field `issuer_url`"),
        ("pulsar:\n  server:\n    config:\n      a: \"b\\\\\"\n", "is not one line"),
        ("pulsar:\n  server:\n    config:\n      \"bind\\\\u0041ddress\": x\n", "is not one line"),
        ("nsq:\n  new_channel_wait: 10000h\n", "nsq.new_channel_wait: "),
    ] {
        let error = read(text.as_bytes()).expect_err(text);
        assert!(error.contains(expected), "expected {expected}\n   found {error}");
    }
}

#[test]
fn what_cannot_be_a_file_is_refused_without_reading_for_ever() {
    for path in ["/dev/zero", "/", "/no/such/file"] {
        let mut layers = Layers::default();
        layers.file(Some(path.into()));
        let error = layers.merge().unwrap_err().to_string();
        assert!(error.starts_with(path), "{error}");
    }
    let large = "# no\n".repeat(2_000_000);
    assert!(read(large.as_bytes()).unwrap_err().contains("over 1 MiB"));
}

#[test]
fn an_empty_file_changes_nothing() {
    for text in ["", "\n", "# nothing but words\n"] {
        assert_eq!(read(text.as_bytes()).unwrap(), Config::default());
    }
}

#[test]
fn flags_win_over_the_environment_that_over_the_file_and_that_over_the_defaults() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("q.yaml");
    fs::write(&path, "profile: full\njobs: 2\nseed: 1\nsuite:\n  messages: 77\n").unwrap();
    let environment = |name: &str| match name {
        "QUEUEPROOF_CONFIG" => Some(path.display().to_string()),
        "QUEUEPROOF_JOBS" => Some("3".into()),
        "QUEUEPROOF_SEED" => Some("2".into()),
        _ => None,
    };
    let mut layers = Layers::default();
    layers.environment(environment).unwrap();
    layers.set("--seed", "seed", "3");
    let config = layers.merge().unwrap();
    assert_eq!((config.profile, config.jobs, config.seed), (Profile::Full, 3, Some(3)));
    let plan = config.plan(Selection::default()).unwrap();
    let suite = &plan.targets[0].suite;
    assert_eq!((suite.messages, suite.consumers), (77, 8), "a key wins over its profile");
    assert_eq!(suite.ack_timeout, Duration::from_secs(2));
}

#[test]
fn a_mistake_in_a_variable_or_a_flag_names_it() {
    let mut layers = Layers::default();
    layers.environment(|name| (name == "QUEUEPROOF_SEED").then(|| "x".into())).unwrap();
    let error = layers.merge().unwrap_err().to_string();
    assert_eq!(error, "QUEUEPROOF_SEED: seed: invalid type: string \"x\", expected a whole number");
    let mut layers = Layers::default();
    layers.set_flag("suite.mesages=3").unwrap();
    let error = layers.merge().unwrap_err().to_string();
    assert!(
        error.starts_with("--set suite.mesages: suite.mesages: there is no such key"),
        "{error}"
    );
    assert!(Layers::default().set_flag("nonsense").is_err());
}

#[test]
fn the_configurations_to_start_from_are_read_and_quick_is_the_default() {
    for entry in fs::read_dir("configs").unwrap() {
        let path = entry.unwrap().path();
        if path.ends_with("sensu.yaml") {
            continue; // A scorecard, read by the tests of those.
        }
        let config = read(&fs::read(&path).unwrap());
        let config = config.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        if path.ends_with("quick.yaml") {
            assert_eq!(config, Config::default());
        }
        if path.ends_with("full.yaml") {
            let full = Config { profile: Profile::Full, ..Config::default() };
            let suite = |config: &Config| config.suite.apply(config.profile);
            assert_eq!(suite(&config), suite(&full), "the comments tell the profile's own numbers");
        }
    }
}

#[test]
fn targets_have_settings_of_their_own() {
    let config = read(
        b"nats:\n  replicas: 3\ntargets:\n  a:\n    nats:\n      storage: memory\n  b:\n    memory: {}\n",
    );
    let plan = config.unwrap().plan(Selection::default()).unwrap();
    let names: Vec<_> = plan.targets.iter().map(|t| (t.name.as_str(), t.backend.name())).collect();
    assert_eq!(names, [("a", "nats"), ("b", "memory")]);
    assert_eq!(plan.targets[0].settings["storage"], "memory");
    assert_eq!(plan.targets[0].settings["replicas"], 3);
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = read(&bytes);
    }

    #[test]
    fn no_mutation_of_a_good_file_makes_it_panic(at in 0_usize..1200, with in "[ -~\n\t]{0,4}") {
        let mut text = fs::read_to_string("configs/nats.yaml").unwrap().replace("# ", "  ");
        let at = (0..=at.min(text.len())).rev().find(|&i| text.is_char_boundary(i)).unwrap();
        text.insert_str(at, &with);
        let _ = read(text.as_bytes());
    }
}
