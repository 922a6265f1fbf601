//! Java, for brokers that are written in it.

use std::{
    env,
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use super::{BrokerError, find, process};

/// Checks that there is a Java of this major version or a later one, where such brokers look for
/// it: the directory that `JAVA_HOME` names, else PATH.
///
/// # Errors
/// Environment: there is none, or it is too old; the message says how to get one.
pub(super) fn check(
    home: Option<&Path>,
    search_path: &OsStr,
    at_least: u32,
) -> Result<(), BrokerError> {
    let needed = format!(
        "Java {at_least} or later is needed; install it from your system's packages (as \
         `openjdk-{at_least}-jre-headless`) or from https://adoptium.net"
    );
    let (java, by) = match home {
        Some(home) => (home.join("bin/java"), "JAVA_HOME names"),
        None => {
            let on_path = env::split_paths(search_path)
                .map(|dir| dir.join("java"))
                .find(|path| find::is_executable(path));
            let none = || {
                BrokerError::environment(format!(
                    "JAVA_HOME is not set and there is no `java` on PATH: {needed}"
                ))
            };
            (on_path.ok_or_else(none)?, "on PATH is")
        }
    };
    let shown = java.display();
    if !find::is_executable(&java) {
        return Err(BrokerError::environment(format!(
            "{by} a directory without `{shown}`: {needed}"
        )));
    }
    match major_version(&java)? {
        Some(version) if version >= at_least => Ok(()),
        Some(version) => Err(BrokerError::environment(format!(
            "{by} `{shown}`, which is Java {version}: {needed}"
        ))),
        None => Err(BrokerError::environment(format!(
            "{by} `{shown}`, which does not tell its version: {needed}"
        ))),
    }
}

/// The user's JAVA_HOME; an empty one counts as unset.
pub(super) fn home() -> Option<PathBuf> {
    env::var_os("JAVA_HOME").filter(|home| !home.is_empty()).map(PathBuf::from)
}

fn major_version(java: &Path) -> Result<Option<u32>, BrokerError> {
    let told = process::output(Command::new(java).arg("-version"), Duration::from_secs(20))?;
    // `openjdk version "17.0.15" 2025-04-15`, on standard error; before Java 9 `"1.8.0_402"`.
    let told = String::from_utf8_lossy(&told.stderr);
    let version = told.split("version \"").nth(1).and_then(|rest| rest.split('"').next());
    let mut numbers = version.unwrap_or_default().split(|c: char| !c.is_ascii_digit());
    let mut number = || numbers.next().and_then(|number| number.parse().ok());
    Ok(match number() {
        Some(1) => number(),
        major => major,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::brokers::testing::fake_java;

    #[test]
    fn an_old_or_a_missing_java_is_told_with_the_remedy() {
        let dir = TempDir::new().unwrap();
        let fake = |name: &str, told: &str| {
            let home = dir.path().join(name);
            fake_java(&home.join("bin/java"), told);
            home
        };
        let none = OsStr::new("");
        let new = fake("new", "openjdk version \"21\" 2023-09-19");
        check(Some(&new), none, 17).unwrap();
        check(None, new.join("bin").as_os_str(), 17).unwrap();
        check(Some(&fake("same", "java version \"17.0.15\" 2025-04-15 LTS")), none, 17).unwrap();

        let missing = dir.path().join("missing");
        for (home, words) in [
            (Some(fake("eight", "openjdk version \"1.8.0_402\"")), "is Java 8"),
            (Some(fake("eleven", "openjdk version \"11.0.22\"")), "is Java 11"),
            (Some(fake("other", "no such thing")), "does not tell its version"),
            (Some(missing), "JAVA_HOME names a directory without"),
            (None, "no `java` on PATH"),
        ] {
            let error = check(home.as_deref(), none, 17).unwrap_err();
            for part in [words, "Java 17 or later is needed"] {
                assert!(error.message.contains(part), "{error}");
            }
        }
    }
}
