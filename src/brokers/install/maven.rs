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
