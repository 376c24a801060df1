//! The program as people call it.

mod commands;
mod policy;
