//! The machine that the figures are from.

use std::path::Path;

use anyhow::{Context, Result};

use crate::measure::Program;

/// Facts of the host, as a Markdown list.
pub fn facts(qemu_img: &Program, runs: usize) -> Result<String> {
    let version = qemu_img.answer(&["--version"])?;
    let version = version.lines().next().context("qemu-img --version")?;
    let cpuinfo = read("/proc/cpuinfo");
    let model = value(&cpuinfo, "model name").unwrap_or("unknown");
    let cores = cpuinfo
        .lines()
        .filter(|line| line.starts_with("processor"))
        .count();
    let flags = value(&cpuinfo, "flags").unwrap_or_default();
    let guest = flags.split(' ').any(|flag| flag == "hypervisor");
    let under = if guest {
        ", itself a virtual machine"
    } else {
        ""
    };
    let governor = read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor");
    let governor = match governor.trim() {
        "" => "not visible",
        name => name,
    };
    Ok(format!(
        "* CPU: {model}, {cores} cores{under}; frequency governor: {governor}\n\
         * Kernel: Linux {}; KVM: {}\n\
         * Oracle: {version}\n\
         * {runs} runs of each program in turn, new processes, files in the page cache\n",
        read("/proc/sys/kernel/osrelease").trim(),
        kvm(),
    ))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// The value of the first `KEY : VALUE` line.
fn value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.trim() == key)
        .map(|(_, value)| value.trim())
}

/// Which of KVM's back ends is loaded.
fn kvm() -> String {
    let modules = ["kvm_intel", "kvm_amd", "kvm_pvm"];
    let loaded: Vec<&str> = modules
        .into_iter()
        .filter(|name| Path::new("/sys/module").join(name).exists())
        .collect();
    match loaded.as_slice() {
        [] => "its module is not visible".to_owned(),
        names => names.join(", "),
    }
}
