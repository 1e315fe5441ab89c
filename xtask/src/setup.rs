//! What the other commands need on the machine: looked for, and installed where it is missing.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};

use lab::progress::step;

/// The oldest kernel that the tests run under.
const KERNEL_MIN: (u32, u32) = (6, 1);
const BPF_LINKER: &str = "0.13.0";
const LLVM: &str = "/usr/lib/llvm-22";

/// A Debian package, and a file or program that shows it is there.
struct Package {
    name: &'static str,
    sign: &'static str,
}

const fn package(name: &'static str, sign: &'static str) -> Package {
    Package { name, sign }
}

const RUN: &[Package] = &[
    package("iproute2", "/usr/sbin/ip"),
    package("nftables", "/usr/sbin/nft"),
    package("ethtool", "/usr/sbin/ethtool"),
    package("curl", "/usr/bin/curl"),
    package("util-linux", "/usr/bin/nsenter"),
];
const BUILD: &[Package] = &[
    package("rustc-web", "/usr/bin/rustc"),
    package(
        "libstd-rust-web-dev-bpf",
        "/usr/lib/rustlib/bpfel-unknown-none",
    ),
    package("llvm-22-dev", "/usr/lib/llvm-22/bin/llvm-config"),
    package("gcc", "/usr/bin/cc"),
];
const TEST: &[Package] = &[
    package("docker.io", "docker"),
    package("golang-cfssl", "cfssl"),
];
/// For tests under another kernel.
const MACHINE: &[Package] = &[
    package("qemu-system-x86", "/usr/bin/qemu-system-x86_64"),
    package("busybox-static", "/usr/bin/busybox"),
    package("cpio", "/usr/bin/cpio"),
    package("kmod", "/usr/sbin/depmod"),
    package("binutils", "/usr/bin/strip"),
    package("docker.io", "docker"),
];

/// The fuzzer is in C++.
const CPP: Package = package("g++", "c++");

/// What a command is about to do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum For {
    Run,
    Test,
    /// Tests in an emulated machine.
    Machine,
}

/// Installs what is missing. Asks nothing.
///
/// # Errors
/// One sentence: what is missing and how to get it.
pub fn ensure_ready(purpose: For) -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "this makes network namespaces and loads eBPF programs: run it as root (`sudo -E cargo xtask …`)"
    );
    check_kernel()?;
    let mut wanted: Vec<&Package> = RUN.iter().collect();
    let own_toolchain = has_nightly_rust_src();
    if !own_toolchain {
        wanted.extend(BUILD);
    }
    match purpose {
        For::Run => {}
        For::Test => wanted.extend(TEST),
        For::Machine => wanted.extend(MACHINE),
    }
    let missing: Vec<_> = wanted
        .into_iter()
        .filter(|package| !is_there(package.sign))
        .map(|package| package.name)
        .collect();
    if !missing.is_empty() {
        install(&missing)?;
    }
    ensure_bpf_linker(own_toolchain)
}

/// Installs a C++ compiler unless there is one, which `CXX` may name.
///
/// # Errors
/// As [`ensure_ready`].
pub fn ensure_cpp() -> Result<()> {
    if std::env::var_os("CXX").is_some() || is_there(CPP.sign) {
        return Ok(());
    }
    install(&[CPP.name])
}

fn check_kernel() -> Result<()> {
    let name = nix::sys::utsname::uname()?;
    let release = name.release().to_string_lossy().into_owned();
    let mut numbers = release
        .split(['.', '-'])
        .map_while(|part| part.parse().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    ensure!(
        version >= KERNEL_MIN,
        "kernel {release} is too old: swarmnet needs Linux {}.{} or later, as Debian 12 has it",
        KERNEL_MIN.0,
        KERNEL_MIN.1,
    );
    ensure!(
        Path::new("/sys/kernel/btf/vmlinux").exists(),
        "kernel {release} has no BTF (CONFIG_DEBUG_INFO_BTF): install a distribution's kernel"
    );
    Ok(())
}

fn is_there(sign: &str) -> bool {
    if sign.starts_with('/') {
        return Path::new(sign).exists();
    }
    find(sign).is_some()
}

/// A program in `PATH`.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|path| path.exists())
}

fn has_nightly_rust_src() -> bool {
    let sysroot = Command::new("rustup")
        .args(["run", "nightly", "rustc", "--print", "sysroot"])
        .output();
    sysroot.is_ok_and(|output| {
        let sysroot = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        output.status.success()
            && Path::new(&sysroot)
                .join("lib/rustlib/src/rust/library/core")
                .exists()
    })
}

fn install(packages: &[&str]) -> Result<()> {
    let names = packages.join(" ");
    let apt = Path::new("/usr/bin/apt-get");
    ensure!(
        apt.exists(),
        "missing: {names} (Debian's package names); install them"
    );
    step(&format!("installing {names}"), || {
        quiet(Command::new(apt).arg("update"))?;
        quiet(
            Command::new(apt)
                .env("DEBIAN_FRONTEND", "noninteractive")
                .args(["install", "--yes", "--no-install-recommends"])
                .args(packages),
        )
    })
    .with_context(|| {
        format!("cannot install; try `apt-get install --no-install-recommends {names}`")
    })
}

fn ensure_bpf_linker(own_toolchain: bool) -> Result<()> {
    if is_there("bpf-linker") {
        return Ok(());
    }
    step("installing bpf-linker (a minute or so)", || {
        let mut cargo = Command::new("cargo");
        cargo.args(["install", "bpf-linker", "--version", BPF_LINKER, "--locked"]);
        if !own_toolchain {
            cargo
                .env("LLVM_PREFIX", LLVM)
                .args(["--no-default-features", "--features", "llvm-22"]);
        }
        quiet(&mut cargo)
    })
}

/// Runs a command; what it printed is shown only when it fails.
pub fn quiet(command: &mut Command) -> Result<()> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        bail!(
            "{command:?}: {}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}
