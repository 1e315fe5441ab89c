//! The shim alone, for this crate's tests: `swarmnet` itself has it as a hidden subcommand.

fn main() {
    let mut args = std::env::args_os().skip(1);
    assert_eq!(
        args.next().as_deref(),
        Some(swarmnet_executor::SHIM_COMMAND.as_ref())
    );
    swarmnet_executor::shim_main(args)
}
