//! The command line program.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    // Before anything else: this may be the guard of a broker, not a user's command.
    if let Some(code) = queueproof::brokers::guard_main() {
        return code;
    }
    queueproof::commands::run(&queueproof::cli::Cli::parse())
}
