"""The command `prompts`: list the prompt sets, and have a language model write one."""

from __future__ import annotations

from typing import Annotated

import typer

from MedCLIPSAMLib.cli_options import VerboseOption, progress_bar, reported

prompts_app = typer.Typer(help="The prompt sets by task; --prompt set:NAME takes one.")


@prompts_app.callback(invoke_without_command=True)
def prompts(context: typer.Context) -> None:
    """List the prompt sets by task; --prompt set:NAME takes one."""
    if context.invoked_subcommand is not None:
        return
    with reported(False):
        from MedCLIPSAMLib.prompt_sets import load_prompt_set, prompt_sets, unusable_sets

        tasks: dict[str, list[str]] = {}
        for name in prompt_sets():
            loaded = load_prompt_set(name)
            tasks.setdefault(loaded.task or "other", []).append(f"set:{name}{'  (yours)' if loaded.own else ''}")
        unusable = unusable_sets()
    for task, names in tasks.items():
        typer.echo(task)
        for name in names:
            typer.echo(f"    {name}")
    for reason in unusable.values():
        typer.echo(f"Note: left out: {reason}", err=True)


@prompts_app.command()
def write(
    target: Annotated[str, typer.Option(help="What to describe: a short phrase such as 'breast tumor'.")],
    modality: Annotated[str, typer.Option(help="Of the images: a short phrase such as 'breast ultrasound'.")],
    endpoint: Annotated[str, typer.Option(help="Base address of an OpenAI-compatible server; https, or localhost.")],
    model: Annotated[str, typer.Option(help="The model, as that server calls it.")],
    count: Annotated[int, typer.Option(help="How many sentences, 1 to 100.")] = 20,
    name: Annotated[str | None, typer.Option(help="Of the set; none: made of target and modality.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Ask anew although the answers are stored.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Send without being asked, for scripts.")] = False,
    verbose: VerboseOption = False,
) -> None:
    """Have a language model write a prompt set; a key is taken from MEDCLIPSAM_LLM_KEY and kept nowhere.

    What leaves this computer is shown and confirmed first: the paper's question with the two phrases, never an image.
    """
    with reported(verbose):
        from MedCLIPSAMLib import language_http, language_model
        from MedCLIPSAMLib.errors import InputError
        from MedCLIPSAMLib.language_question import Question
        from MedCLIPSAMLib.prompt_checks import unsupported_wording
        from MedCLIPSAMLib.prompt_sets import user_sets_folder

        question = Question(target, modality, endpoint, model, count)
        chosen = language_model.set_name(question, name)
        if language_model.is_stored(question, again):
            typer.echo("The answers to this question are stored; nothing is sent. --again asks anew.", err=True)
        else:
            if language_http.offline():
                raise InputError(language_http.OFFLINE_MESSAGE)
            key = language_http.key_of_environment()
            where = "goes to a server on this computer" if question.stays_here else "leaves this computer"
            times = f"up to {language_model.ROUNDS} times, and again where the server is busy"
            typer.echo(f"This text {where}, {times}; nothing else does:\n", err=True)
            typer.echo(f"{question.outgoing(key is not None)}\n", err=True)
            if again and language_model.stored_name(question) == chosen:
                typer.echo(f"The answers replace set:{chosen}, with what was edited in it.", err=True)
            if not yes and not typer.confirm("Send it?", err=True):
                typer.echo("Nothing was sent.", err=True)
                raise typer.Exit(1)
        with progress_bar("sentence") as progress:
            written = language_model.write_set(question, name=name, again=again, progress=progress)
    for sentence in written.prompts:
        typer.echo(sentence)
    if len(written.prompts) < count:
        typer.echo(f"Note: {len(written.prompts)} of {count} sentences are of use.", err=True)
    warned = {text for sentence in written.prompts for text in unsupported_wording(sentence)}
    for text in sorted(warned):
        typer.echo(f"Note: {text}", err=True)
    how = "the mean of all sentences" if written.is_ensemble else "the first sentence"
    typer.echo(f"\n--prompt set:{written.name} takes {how}; a sentence of its own can be given as the prompt itself.")
    typer.echo(f"To edit: {user_sets_folder() / written.name}.json")
