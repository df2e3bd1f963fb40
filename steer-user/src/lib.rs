//! The library behind `steer`: from Microsoft's endpoint list and the operator's configuration to
//! packets that leave by the office's own Internet connection.
#![deny(missing_docs)]

pub mod api;
pub mod bypass;
pub mod cli;
pub mod config;
pub mod controller;
mod cut;
pub mod datapath;
pub mod doctor;
pub mod endpoints;
pub mod export;
pub mod forwarder;
pub mod init;
pub mod paths;
pub mod policy;
pub mod probe;
pub mod system;
