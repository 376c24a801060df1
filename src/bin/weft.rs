//! The command line, which is also the daemon and the CNI plugin when called `weftd` and `weft-cni`.

use std::process::ExitCode;

fn main() -> ExitCode {
    weft::cli::main()
}
