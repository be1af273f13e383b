//! Commands that are named and not there yet: whatever follows is taken and answered with that.

/// Anything.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Whatever the command will take
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    rest: Vec<String>,
}
