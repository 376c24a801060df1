//! The CNI plugin `weft-cni`: a thin client of the daemon.

fn main() -> std::process::ExitCode {
    cni::plugin::main()
}
