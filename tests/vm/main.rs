//! A real VM: Debian's cloud kernel under QEMU's software emulation, busybox and the guest's program in it.
//!
//! `ground` is what a VM is made of, `machine` is one that runs, `way` how it reaches the broker; the other files are
//! named by behaviour. An AF_VSOCK address is dialled only inside a guest: CID 2 of this machine is somebody else's.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

#[path = "../support/mod.rs"]
mod support;

mod boot;
mod cpio;
mod exactly_once;
mod found;
mod ground;
mod kernel_vsock;
mod machine;
mod packaging;
mod session;
mod snapshot;
mod way;
mod world;
