//! `castra completions`, as it is typed.

use clap::Args;
use clap_complete::Shell;

/// Behind `--help`.
pub const HELP: &str = r#"Examples:
  castra completions bash > ~/.local/share/bash-completion/completions/castra
  castra completions zsh > ~/.zfunc/_castra
  castra completions fish > ~/.config/fish/completions/castra.fish"#;

/// `castra completions`.
#[derive(Args, Debug)]
pub struct CompletionsArgs {
    /// For which shell
    #[arg(value_name = "SHELL")]
    pub shell: Shell,
}
