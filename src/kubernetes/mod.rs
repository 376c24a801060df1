//! What a node has to do with a Kubernetes cluster besides reading its objects.

pub mod cluster;
pub mod election;
pub mod memory;
pub mod placement;
pub mod writer;
pub mod writes;
