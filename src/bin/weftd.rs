//! The node daemon.

use std::process::ExitCode;

fn main() -> ExitCode {
    weft::daemon::main(std::env::args_os())
}
