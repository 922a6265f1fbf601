//! Through Debian's package clients, without installing anything.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::{BrokerError, client::Work};

/// Brings a version of a Debian package and unpacks it below `scratch`; returns a directory that
/// holds one file of it. Debian checks the package against the signatures of its repository.
pub(super) fn install(
    work: &mut Work<'_>,
    package: &str,
    version: &str,
    path: &str,
    scratch: &Path,
) -> Result<PathBuf, BrokerError> {
    let needed = format!(
        "{package} is brought by Debian's apt; where there is none install it from your system's \
         packages, and put it on PATH"
    );
    let (apt, dpkg) = (work.program("apt-get", &needed)?, work.program("dpkg", &needed)?);
    let failed = |error| BrokerError::io(format_args!("unpacking {package}"))(error);
    let (brought, unpacked, home) =
        (scratch.join("brought"), scratch.join("unpacked"), scratch.join("home"));
    for dir in [&brought, &unpacked, &home] {
        fs::create_dir(dir).map_err(failed)?;
    }
    // Debian's own revision follows.
    let wanted = format!("{package}={version}-*");
    let doing = format!("apt-get download {wanted}");
    let mut bring = || {
        work.run(Command::new(&apt).args(["download", "-q", &wanted]).current_dir(&brought), &doing)
    };
    if let Err(first) = bring() {
        // Without lists of packages apt knows none; only root may bring them.
        if !rustix::process::geteuid().is_root() {
            return Err(BrokerError::environment(format!(
                "{first}\nif apt knows no packages yet, `apt-get update` as root brings their lists"
            )));
        }
        work.run(Command::new(&apt).args(["update", "-q"]), "apt-get update")?;
        work.run(
            Command::new(&apt).args(["download", "-q", &wanted]).current_dir(&brought),
            &doing,
        )?;
    }
    let archives = fs::read_dir(&brought).map_err(failed)?;
    for archive in archives {
        let archive = archive.map_err(failed)?.path();
        let mut unpack = Command::new(&dpkg);
        unpack.arg("-x").arg(&archive).arg(&unpacked);
        work.run(&mut unpack, "dpkg -x")?;
    }
    let file = unpacked.join(path);
    let name = file.file_name().unwrap_or_default();
    fs::rename(&file, home.join(name)).map_err(failed)?;
    Ok(home)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use tempfile::TempDir;

    use crate::brokers::{
        BrokerError, Installed, Places,
        find::version_of,
        install, kind,
        testing::{places, script},
    };

    /// Places with an `apt-get` that logs its arguments and runs `text`, and a `dpkg` that unpacks
    /// an etcd of a version.
    fn fake_debian(dir: &std::path::Path, text: &str, version: &str) -> Places {
        let log = dir.join("apt.log");
        script(&dir.join("bin/apt-get"), &format!("echo \"$@\" >> '{}'\n{text}", log.display()));
        let dpkg = format!(
            r#"mkdir -p "$3/usr/bin"
            printf '#!/bin/sh\necho etcd Version: {version}\n' > "$3/usr/bin/etcd"
            chmod 755 "$3/usr/bin/etcd""#
        );
        script(&dir.join("bin/dpkg"), &dpkg);
        Places { search_path: dir.join("bin").into(), ..places(dir) }
    }

    fn install_etcd(places: &Places) -> Result<Installed, BrokerError> {
        let etcd = kind("etcd").unwrap();
        install(places, etcd, None, &AtomicBool::new(false), &mut |_| {})
    }

    #[test]
    fn the_executable_of_the_package_is_put_into_the_cache() {
        let dir = TempDir::new().unwrap();
        let places = fake_debian(dir.path(), "touch etcd-server_3.4.23-4_amd64.deb", "3.4.23");
        let installed = install_etcd(&places).unwrap();
        assert_eq!(version_of(kind("etcd").unwrap(), &installed.path).unwrap(), "3.4.23");
        let log = std::fs::read_to_string(dir.path().join("apt.log")).unwrap();
        assert_eq!(log, "download -q etcd-server=3.4.23-*\n");
    }

    #[test]
    fn another_version_than_asked_for_is_not_installed() {
        let dir = TempDir::new().unwrap();
        let places = fake_debian(dir.path(), "touch etcd-server.deb", "3.5.0");
        let error = install_etcd(&places).unwrap_err();
        assert!(error.message.contains("3.5.0"), "{error}");
    }

    #[test]
    fn what_apt_does_not_know_is_told_with_what_it_printed() {
        let dir = TempDir::new().unwrap();
        let text = "echo 'E: Unable to locate package etcd-server' >&2; exit 100";
        let error = install_etcd(&fake_debian(dir.path(), text, "3.4.23")).unwrap_err();
        assert!(error.message.contains("apt-get"), "{error}");
        assert!(error.message.contains("Unable to locate"), "{error}");
    }

    #[test]
    fn without_apt_the_message_says_what_to_do() {
        let dir = TempDir::new().unwrap();
        let error = install_etcd(&places(dir.path())).unwrap_err();
        for part in ["no `apt-get` on PATH", "etcd-server", "packages"] {
            assert!(error.message.contains(part), "{error}");
        }
    }
}
