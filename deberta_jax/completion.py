"""Completion for shells: `deberta-jax completion bash`, zsh or fish prints a script.

The script knows the commands. It asks for the options of a command, and for their choices, when they are first needed:
`deberta-jax completion words COMMAND` imports the command, which takes a second or two; the shell keeps the answer.
"""

import difflib
import importlib
import inspect
from collections.abc import Mapping, Sequence

from .errors import UserError
from .option_list import command_line_options
from .terminal import say

SHELLS = ("bash", "zsh", "fish")
_ALWAYS = ("--help", "--help-all", "--version")
_HELP = """usage: deberta-jax completion SHELL

Prints a script that completes the commands, options and choices of deberta-jax. SHELL is bash, zsh or fish.

examples
  deberta-jax completion bash >> ~/.bashrc
  deberta-jax completion zsh >> ~/.zshrc
  deberta-jax completion fish > ~/.config/fish/completions/deberta-jax.fish"""

# The words of a command are lines: an option and its choices, or a value of its first argument.
_BASH = r"""
_deberta_jax() {
  local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]} command=${COMP_WORDS[1]}
  local list line name names="" choices="" variable
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "@COMMANDS@ --help --version" -- "$current"))
    return
  fi
  case " @COMMANDS@ " in *" $command "*) ;; *) return ;; esac
  variable=_deberta_jax_words_${command//-/_}
  eval "list=\$$variable"
  if [ -z "$list" ]; then
    list=$(command deberta-jax completion words "$command" 2>/dev/null)
    eval "$variable=\$list"
  fi
  while IFS= read -r line; do
    name=${line%% *}
    case $name in -*) names="$names $name" ;; *) [ "$COMP_CWORD" -eq 2 ] && choices="$choices $name" ;; esac
    if [ "$name" = "$previous" ] && [ "$line" != "$previous" ]; then choices=${line#* }; fi
  done <<< "$list"
  case $current in
    -*) COMPREPLY=($(compgen -W "$names" -- "$current")) ;;
    *) [ -n "$choices" ] && COMPREPLY=($(compgen -W "$choices" -- "$current")) ;;
  esac
}
complete -o default -o bashdefault -F _deberta_jax deberta-jax
""".strip()
_ZSH = """
(( $+functions[compdef] )) || { autoload -U +X compinit && compinit }
autoload -U +X bashcompinit && bashcompinit
""".strip()
_FISH = r"""
function __deberta_jax_words
    set -l command (commandline -opc)[2]
    set -l variable __deberta_jax_words_(string replace -a - _ -- $command)
    if not set -q $variable
        set -g $variable (command deberta-jax completion words $command 2>/dev/null)
    end
    set -l previous (commandline -opc)[-1]
    for line in $$variable
        set -l parts (string split ' ' -- $line)
        if test "$parts[1]" = "$previous" -a (count $parts) -gt 1
            printf '%s\n' $parts[2..-1]
            return
        end
    end
    for line in $$variable
        string split -f1 ' ' -- $line
    end
end
""".strip()


def main(arguments: Sequence[str]) -> None:
    """Runs `deberta-jax completion SHELL`: prints the script.

    Raises:
      UserError: there is no such shell or command.
    """
    from .__main__ import COMMANDS

    match list(arguments):
        case ["-h" | "--help" | "--help-all"]:
            say(_HELP)
        case ["words", command] if command in COMMANDS:
            say("\n".join(words_of(command)))
        case [shell] if shell in SHELLS:
            say(script(shell, {name: text for name, (_, _, text) in COMMANDS.items()}))
        case [] | [_, _, *_]:
            raise UserError(f"give one shell: {', '.join(SHELLS)}")
        case [shell]:
            near = difflib.get_close_matches(shell, SHELLS, n=1)
            hint = f"; did you mean {near[0]}? There" if near else "; there"
            raise UserError(f"no completion for {shell!r}{hint} is one for {', '.join(SHELLS)}")


def script(shell: str, commands: Mapping[str, str]) -> str:
    """Returns the script of a shell.

    Args:
      shell: one of SHELLS.
      commands: what each command does, by name.
    """
    bash = _BASH.replace("@COMMANDS@", " ".join(commands))
    if shell == "bash":
        return bash
    if shell == "zsh":
        return f"{_ZSH}\n{bash}"
    lines = [_FISH, "complete -c deberta-jax -n __fish_use_subcommand -f -l help -l version"]
    for name, text in commands.items():
        lines.append(f"complete -c deberta-jax -n __fish_use_subcommand -f -a {name} -d '{text}'".replace("\\", ""))
    lines.append("complete -c deberta-jax -n 'not __fish_use_subcommand' -a '(__deberta_jax_words)'")
    return "\n".join(lines)


def completion_words() -> list[str]:
    """Returns what may follow `deberta-jax completion`."""
    return list(SHELLS)


def words_of(command: str) -> list[str]:
    """Returns each name of an option of a command, followed by its choices."""
    from .__main__ import COMMANDS

    module_name, class_name, _ = COMMANDS[command]
    module = importlib.import_module(module_name)
    if class_name is None:
        words = getattr(module, "completion_words", None)
        return [*(words() if inspect.isfunction(words) else ()), "--help"]
    return option_words(getattr(module, class_name))


def option_words(settings: type) -> list[str]:
    """Returns each name of an option of a dataclass of settings, followed by its choices."""
    options = command_line_options(settings)
    return [*(" ".join([name, *option.choices]) for option in options for name in option.names), *_ALWAYS]
