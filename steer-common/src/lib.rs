//! What the kernel programs and the controller share.
#![no_std]
#![deny(missing_docs)]
