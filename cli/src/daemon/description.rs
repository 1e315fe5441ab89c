//! What the node says of itself.

use std::fs;

use model::object::NodeDescription;

/// Read anew each time: hostnames change.
pub fn description() -> NodeDescription {
    let hostname = nix::unistd::gethostname().unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    NodeDescription {
        hostname: hostname.to_string_lossy().into_owned(),
        os: std::env::consts::OS.to_owned(),
        architecture: std::env::consts::ARCH.to_owned(),
        nano_cpus: i64::try_from(cpus).unwrap_or(1) * 1_000_000_000,
        memory_bytes: fs::read_to_string("/proc/meminfo")
            .ok()
            .as_deref()
            .and_then(total)
            .unwrap_or_default(),
        engine_version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

/// `MemTotal` of `/proc/meminfo`, in bytes.
fn total(meminfo: &str) -> Option<i64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: i64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_the_kernels_text() {
        assert_eq!(
            total("MemTotal:       24653836 kB\nMemFree: 1 kB\n"),
            Some(24_653_836 * 1024)
        );
        assert_eq!(total("MemFree: 1 kB\n"), None);
    }

    #[test]
    fn this_machine_describes_itself() {
        let description = description();
        assert!(!description.hostname.is_empty());
        assert!(description.nano_cpus > 0 && description.memory_bytes > 0);
    }
}
