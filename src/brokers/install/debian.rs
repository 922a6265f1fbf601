//! Through Debian's package clients, without installing anything in the system.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::{BrokerError, client::Work};
use crate::brokers::ErrorClass;

/// Brings a version of a package, whatever Debian's revision of it, and unpacks it below `scratch`;
/// returns a directory that holds the file of this path in it. What is brought is checked by apt
/// against its repository's signed lists. Where apt finds no such version and this is root, it
/// updates these lists first.
pub(super) fn install(
    work: &mut Work<'_>,
    package: &str,
    version: &str,
    path: &str,
    scratch: &Path,
) -> Result<PathBuf, BrokerError> {
    let needed = format!(
        "`{package}` is brought by the package client of Debian and its kin; elsewhere install it \
         from your system's packages or from its makers, and put it on PATH"
    );
    let (apt, dpkg) = (work.program("apt-get", &needed)?, work.program("dpkg", &needed)?);
    let [brought, unpacked, home] = ["brought", "unpacked", "home"].map(|name| scratch.join(name));
    let failed = |error| BrokerError::io(format_args!("unpacking `{package}`"))(error);
    for dir in [&brought, &unpacked, &home] {
        fs::create_dir(dir).map_err(failed)?;
    }

    let wanted = format!("{package}={version}-*");
    let mut run = |args: &[&str]| {
        let mut command = Command::new(&apt);
        // In the language that its errors are looked up in.
        command.args(args).current_dir(&brought).env("LC_ALL", "C.UTF-8");
        work.run(&mut command, &format!("apt-get {}", args.join(" ")))
    };
    let bring = ["download", "-q", &wanted];
    run(&bring)
        .or_else(|error| match error.class {
            ErrorClass::Environment if rustix::process::geteuid().is_root() => {
                run(&["update", "-q"])?;
                run(&bring)
            }
            _ => Err(error),
        })
        .map_err(|error| match error.class {
            ErrorClass::Environment => BrokerError::environment(format!(
                "{error}\nwhere apt does not know the package, `apt-get update` (as root) brings \
                 its lists; where it knows another version (`apt-cache madison {package}` tells), \
                 name that with --version"
            )),
            _ => error,
        })?;

    let archives = fs::read_dir(&brought).map_err(failed)?;
    for archive in archives {
        let mut unpack = Command::new(&dpkg);
        unpack.arg("-x").arg(archive.map_err(failed)?.path()).arg(&unpacked);
        work.run(&mut unpack, "dpkg -x")?;
    }
    let file = unpacked.join(path);
    let made = home.join(file.file_name().unwrap_or_default());
    fs::rename(&file, &made).map_err(failed)?;
    Ok(home)
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
        testing::{places, script},
    };

    use super::*;

    fn etcd() -> &'static BrokerKind {
        kind("etcd").unwrap()
    }

    /// Places with an `apt-get` that logs its arguments, runs `text`, and leaves an archive when it
    /// is asked to download, and with a `dpkg` that unpacks an etcd of this version from it.
    fn fake_debian(dir: &Path, text: &str, version: &str) -> Places {
        let log = dir.join("apt.log").display().to_string();
        let apt = format!(
            "echo \"$@\" >> '{log}'\n{text}\n\
             if [ \"$1\" = download ]; then touch etcd-server_3.4.23-4_amd64.deb; fi"
        );
        script(&dir.join("bin/apt-get"), &apt);
        let dpkg = format!(
            r#"[ "$1" = -x ] && [ -f "$2" ] || exit 2
            mkdir -p "$3/usr/bin" "$3/etc"
            printf '#!/bin/sh\necho etcd Version: {version}\n' > "$3/usr/bin/etcd"
            chmod 755 "$3/usr/bin/etcd""#
        );
        script(&dir.join("bin/dpkg"), &dpkg);
        Places { search_path: dir.join("bin").into(), ..places(dir) }
    }

    fn install_etcd(places: &Places) -> Result<Installed, BrokerError> {
        install(places, etcd(), None, &AtomicBool::new(false), &mut |_| {})
    }

    fn asked(dir: &Path) -> Vec<String> {
        let log = fs::read_to_string(dir.join("apt.log")).unwrap();
        log.lines().map(str::to_owned).collect()
    }

    fn left(places: &Places) -> Vec<String> {
        let left = fs::read_dir(places.cache.join("brokers/etcd")).unwrap();
        let mut left: Vec<_> =
            left.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        left.sort();
        left
    }

    const DOWNLOAD: &str = "download -q etcd-server=3.4.23-*";

    #[test]
    fn of_a_package_the_executable_alone_is_put_into_the_cache_and_once() {
        let dir = TempDir::new().unwrap();
        let places = fake_debian(dir.path(), "", "3.4.23");
        let new = install_etcd(&places).unwrap();
        assert_eq!(new.path, places.cache.join("brokers/etcd/3.4.23/etcd"));
        assert_eq!(version_of(etcd(), &new.path).unwrap(), "3.4.23");
        assert_eq!(fs::read_dir(new.path.parent().unwrap()).unwrap().count(), 1);
        assert!(install_etcd(&places).unwrap().already);
        assert_eq!(asked(dir.path()), [DOWNLOAD]);
        assert_eq!(left(&places), [".lock", "3.4.23"]);
        assert_eq!(installed(&places, etcd()), ["3.4.23"]);
    }

    #[test]
    fn another_version_than_asked_for_or_nothing_is_not_installed() {
        for (text, version, words) in
            [("", "3.5.0", "says it is 3.5.0"), ("exit 0", "3.4.23", "No such file")]
        {
            let dir = TempDir::new().unwrap();
            let places = fake_debian(dir.path(), text, version);
            let error = install_etcd(&places).unwrap_err();
            assert_eq!(error.class, ErrorClass::Environment);
            assert!(error.message.contains(words), "{error}");
            assert_eq!(left(&places), [".lock"]);
        }
    }

    #[test]
    fn what_apt_does_not_know_is_looked_for_in_new_lists_by_root_and_told_to_others() {
        let dir = TempDir::new().unwrap();
        let text = "[ $1 = update ] && exit; \
                    echo 'E: Unable to locate package etcd-server' >&2; exit 100";
        let places = fake_debian(dir.path(), text, "3.4.23");
        let error = install_etcd(&places).unwrap_err();
        assert_eq!(error.class, ErrorClass::Environment);
        for part in ["apt-get download", "Unable to locate", "apt-get update", "--version"] {
            assert!(error.message.contains(part), "{error}");
        }
        let root = rustix::process::geteuid().is_root();
        let all = [DOWNLOAD, "update -q", DOWNLOAD];
        assert_eq!(asked(dir.path()), if root { &all[..] } else { &all[..1] });
        assert_eq!(left(&places), [".lock"]);
    }

    #[test]
    fn an_interrupted_installation_ends_apt_and_updates_nothing() {
        let dir = TempDir::new().unwrap();
        let started = dir.path().join("started");
        // The script finds no programs but those of the test.
        let text = format!(
            "PATH=/usr/bin:/bin; touch '{}'; trap 'exit 1' TERM; sleep 60 & wait",
            started.display()
        );
        let places = fake_debian(dir.path(), &text, "3.4.23");
        let interrupted = AtomicBool::new(false);
        let error = thread::scope(|scope| {
            let installing =
                scope.spawn(|| install(&places, etcd(), None, &interrupted, &mut |_| {}));
            assert!(wait_until(std::time::Duration::from_secs(30), || started.exists()));
            interrupted.store(true, Ordering::Relaxed);
            installing.join().unwrap().unwrap_err()
        });
        assert_eq!(error.class, ErrorClass::Interrupted);
        assert_eq!(asked(dir.path()), [DOWNLOAD]);
        assert_eq!(left(&places), [".lock"]);
    }

    #[test]
    fn without_apt_or_dpkg_the_message_says_what_to_do() {
        let dir = TempDir::new().unwrap();
        let places = fake_debian(dir.path(), "", "3.4.23");
        for missing in ["dpkg", "apt-get"] {
            fs::remove_file(dir.path().join("bin").join(missing)).unwrap();
            let error = install_etcd(&places).unwrap_err();
            assert_eq!(error.class, ErrorClass::Environment);
            for part in [&format!("no `{missing}` on PATH"), "etcd-server", "put it on PATH"] {
                assert!(error.message.contains(part), "{error}");
            }
        }
    }
}
