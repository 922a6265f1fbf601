//! Through Maven.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::{BrokerError, client::Work};

/// The plugin that brings an artifact and unpacks it. Maven's own unpacking keeps the modes of
/// files, and refuses an archive that would write outside its directory.
const UNPACK: &str = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:unpack";

/// Brings an artifact (`group:artifact:version:type:classifier`) that holds a single directory,
/// and unpacks it below `scratch`; returns that directory. Maven checks the artifact against its
/// repository's checksums, and keeps the archive in its own local repository.
pub(super) fn install(
    work: &mut Work<'_>,
    artifact: &str,
    scratch: &Path,
) -> Result<PathBuf, BrokerError> {
    let maven = work.program(
        "mvn",
        &format!(
            "`{artifact}` is brought by Maven; install it from your system's packages (`maven`) \
             or from https://maven.apache.org"
        ),
    )?;
    // The plugin leaves a marker in the directory that it runs in.
    let (client, unpacked) = (scratch.join("client"), scratch.join("unpacked"));
    let failed = |error| BrokerError::io(format_args!("unpacking `{artifact}`"))(error);
    fs::create_dir(&client).map_err(failed)?;
    let mut output = std::ffi::OsString::from("-DoutputDirectory=");
    output.push(&unpacked);
    let mut command = Command::new(maven);
    command
        .args(["--batch-mode", "--strict-checksums", "-Dstyle.color=never", UNPACK])
        .arg(format!("-Dartifact={artifact}"))
        .arg(output)
        .current_dir(&client);
    work.run(&mut command, &format!("mvn {UNPACK} -Dartifact={artifact}"))?;

    let entries = fs::read_dir(&unpacked).map_err(failed)?;
    let entries = entries.collect::<Result<Vec<_>, _>>().map_err(failed)?;
    match entries.as_slice() {
        [home] if home.path().is_dir() => Ok(home.path()),
        _ => Err(BrokerError::environment(format!(
            "`{artifact}` was expected to hold a single directory, and does not"
        ))),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::{
        sync::atomic::{AtomicBool, Ordering},
        thread,
    };

    use tempfile::TempDir;

    use crate::brokers::{
        BrokerKind, ErrorClass, Installed, Places,
        find::{installed, version_of},
        install, kind,
        process::wait_until,
        testing::{fake_java, places, script},
    };

    use super::*;

    fn pulsar() -> &'static BrokerKind {
        kind("pulsar").unwrap()
    }

    /// Places with a Java, and with an `mvn` that logs its arguments, runs `text`, then unpacks
    /// what looks like a distribution of the version that it was asked for.
    fn fake_maven(dir: &Path, text: &str) -> Places {
        let maven = format!(
            r#"echo "$@" >> '{}'
            for argument; do case "$argument" in
                -DoutputDirectory=*) out="${{argument#*=}}" ;;
                -Dartifact=*) version="${{argument#*:}}"; version="${{version#*:}}" ;;
            esac; done
            version="${{version%%:*}}"
            {text}
            mkdir target
            home="$out/apache-pulsar-$version"
            mkdir -p "$home/bin" "$home/conf" "$home/lib"
            touch "$home/bin/pulsar" "$home/conf/standalone.conf"
            touch "$home/lib/org.apache.pulsar-pulsar-broker-$version.jar"
            chmod 755 "$home/bin/pulsar"
            printf '\033[0mExpanding\n\033[0m\n'"#,
            dir.join("mvn.log").display()
        );
        script(&dir.join("bin/mvn"), &maven);
        fake_java(&dir.join("bin/java"), "openjdk version \"17.0.15\" 2025-04-15");
        // The scripts need the system's own programs, too.
        let path = std::env::join_paths([dir.join("bin")]).unwrap();
        Places { search_path: path, ..places(dir) }
    }

    fn install_pulsar(places: &Places) -> Result<Installed, BrokerError> {
        install(places, pulsar(), None, &AtomicBool::new(false), &mut |_| {})
    }

    fn left(places: &Places) -> Vec<String> {
        let left = fs::read_dir(places.cache.join("brokers/pulsar")).unwrap();
        let mut left: Vec<_> =
            left.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        left.sort();
        left
    }

    #[test]
    fn pulsar_is_unpacked_as_a_whole_and_its_checksum_is_demanded() {
        let dir = TempDir::new().unwrap();
        let places = fake_maven(dir.path(), "");
        let mut told = Vec::new();
        let mut progress = |line: &str| told.push(line.to_owned());
        let new = install(&places, pulsar(), None, &AtomicBool::new(false), &mut progress).unwrap();
        // Without the colours, and without what is empty then.
        assert_eq!(told, ["Expanding"]);
        assert_eq!(new.path, places.cache.join("brokers/pulsar/4.0.8/bin/pulsar"));
        assert_eq!(version_of(pulsar(), &new.path).unwrap(), "4.0.8");
        assert_eq!(left(&places), [".lock", "4.0.8"]);
        let log = fs::read_to_string(dir.path().join("mvn.log")).unwrap();
        let artifact = "org.apache.pulsar:pulsar-server-distribution:4.0.8:tar.gz:bin";
        for part in ["--strict-checksums", &format!("-Dartifact={artifact} ")] {
            assert!(log.contains(part), "{log}");
        }
        assert!(install_pulsar(&places).unwrap().already);
        assert_eq!(installed(&places, pulsar()), ["4.0.8"]);
    }

    #[test]
    fn what_is_not_a_distribution_is_not_installed() {
        for (text, words) in [
            ("mkdir -p \"$out/a\" \"$out/b\"; exit 0", "a single directory"),
            ("mkdir -p \"$out/a\"; exit 0", "No such file"),
            ("version=4.0.7", "says it is 4.0.7"),
            ("echo '[ERROR] Could not find artifact'; exit 1", "Could not find artifact"),
        ] {
            let dir = TempDir::new().unwrap();
            let places = fake_maven(dir.path(), text);
            let error = install_pulsar(&places).unwrap_err();
            assert_eq!(error.class, ErrorClass::Environment);
            assert!(error.message.contains(words), "{error}");
            assert_eq!(left(&places), [".lock"]);
        }
    }

    #[test]
    fn an_interrupted_installation_ends_maven_and_leaves_nothing() {
        let dir = TempDir::new().unwrap();
        let started = dir.path().join("started");
        let text = format!("mkdir \"$out\"; touch '{}'; sleep 60", started.display());
        let places = fake_maven(dir.path(), &text);
        let interrupted = AtomicBool::new(false);
        let error = thread::scope(|scope| {
            let installing =
                scope.spawn(|| install(&places, pulsar(), None, &interrupted, &mut |_| {}));
            assert!(wait_until(std::time::Duration::from_secs(30), || started.exists()));
            interrupted.store(true, Ordering::Relaxed);
            installing.join().unwrap().unwrap_err()
        });
        assert_eq!(error.class, ErrorClass::Interrupted);
        assert_eq!(left(&places), [".lock"]);
    }

    #[test]
    fn without_java_or_maven_the_message_says_how_to_get_them() {
        let dir = TempDir::new().unwrap();
        let places = fake_maven(dir.path(), "");
        for (missing, parts) in [
            ("mvn", ["no `mvn` on PATH", "https://maven.apache.org"]),
            ("java", ["no `java` on PATH", "Java 17 or later is needed"]),
        ] {
            fs::remove_file(dir.path().join("bin").join(missing)).unwrap();
            let error = install_pulsar(&places).unwrap_err();
            assert_eq!(error.class, ErrorClass::Environment);
            for part in parts {
                assert!(error.message.contains(part), "{error}");
            }
        }
    }
}
