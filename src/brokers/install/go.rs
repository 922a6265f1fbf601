//! Through Go.

use std::{fs, path::Path, process::Command};

use super::{BrokerError, client::Work};

/// Builds `package@vVERSION` into the directory `home`. What else Go makes goes below `scratch`.
pub(super) fn install(
    work: &mut Work<'_>,
    package: &str,
    home: &Path,
    scratch: &Path,
) -> Result<(), BrokerError> {
    let go = work.program(
        "go",
        &format!(
            "`{package}` is built by Go; install Go from your system's packages or from \
             https://go.dev/dl"
        ),
    )?;
    fs::create_dir(home).map_err(BrokerError::io(format_args!("making `{}`", home.display())))?;
    let mut command = Command::new(go);
    command
        .args(["install", "-v", package])
        .env("GOBIN", home)
        // Removed with the rest, should Go be ended before it could do so itself.
        .env("GOTMPDIR", scratch)
        // A broker for this machine, that needs no C compiler to be built.
        .env("CGO_ENABLED", "0")
        .env_remove("GOOS")
        .env_remove("GOARCH")
        .env("GIT_TERMINAL_PROMPT", "0");
    work.run(&mut command, &format!("go install {package}"))
}
