"""Downloading what a sweep's jobs will need, where there is a network: plans read data, and jobs run, offline."""

import os
from collections.abc import Sequence
from pathlib import Path

from klsweep.config.build import Builder, allowed
from klsweep.config.compose import Composer
from klsweep.config.grid import expand
from klsweep.config.sources import sources
from klsweep.errors import BadInput
from klsweep.model.source import REFUSALS, Model
from klsweep.record.files import write_text
from klsweep.tasks.source import Source, hub_folder, split_file

WANTED = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")  # weights in safetensors alone, the tokenizer

Fetched = tuple[str, str | None, str]


def fetch(composer: Composer, overrides: Sequence[str]) -> list[Fetched]:
    """Download each model and dataset of a sweep; (name, commit, folder) of each. The plan then pins that commit.

    BadInput for one that is neither on this machine nor given by the hub.
    """
    builder, models, data = Builder(), dict[Model, None](), dict[Source, None]()
    for cell in expand(composer, overrides, single=False).cells:
        models[builder.node(cell.config["model"], "model", allowed(cell.config["plugins"]))] = None
        data |= dict.fromkeys(sources(cell.config))
    return [*(_fetch_model(model) for model in models), *(_fetch_source(source) for source in data)]


def _fetch_model(model: Model) -> Fetched:
    commit = model.pinned_revision()
    if commit is None:
        return model.path, None, model.location
    import huggingface_hub

    try:
        folder = huggingface_hub.snapshot_download(model.path, revision=commit, allow_patterns=list(WANTED))
    except Exception as error:  # whatever the network stack raises, the user needs the same sentence
        raise BadInput(f"model.path={model.path!r} at {commit}: the hub did not give it ({error})") from error
    return model.path, commit, folder


def _fetch_source(source: Source) -> Fetched:
    """Each split that is asked for, as one Parquet file; what is on this machine stays as it is."""
    if source.is_file:
        return source.path, None, str(source.files()[0].parent)
    commit = _dataset_commit(source)
    for subset in source.subsets or (None,):
        file = split_file(source.path, commit, subset, source.split)
        if not file.exists():
            _write_split(source, commit, subset, file)
    (hub_folder(source.path) / "refs").mkdir(exist_ok=True)
    write_text(hub_folder(source.path) / "refs" / (source.revision or "main"), commit)
    return source.path, commit, str(hub_folder(source.path) / commit)


def _dataset_commit(source: Source) -> str:
    """The commit on this machine, else what the hub says the revision stands for."""
    try:
        commit = source.commit()
        assert commit is not None
        return commit
    except BadInput:
        import huggingface_hub
    try:
        return str(huggingface_hub.HfApi().dataset_info(source.path, revision=source.revision, timeout=10).sha)
    except Exception as error:  # whatever the network stack raises, the user needs the same sentence
        kind = type(error).__name__
        raise BadInput(
            f"path={source.path!r} (revision {source.revision or 'main'}): the dataset is not on this machine, and the "
            f"hub did not give it ({REFUSALS.get(kind, kind)})"
        ) from error


def _write_split(source: Source, commit: str, subset: str | None, file: Path) -> None:
    import datasets

    try:
        rows = datasets.load_dataset(source.path, subset, split=source.split, revision=commit)
    except Exception as error:  # the network's errors, and the library's for a subset or split that is not there
        where = f"subset {subset or 'default'}, split {source.split}"
        raise BadInput(f"path={source.path!r} at {commit}, {where}: {' '.join(str(error).split())}") from error
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f".{os.getpid()}.part")
    rows.to_parquet(str(part))  # pyright: ignore[reportAttributeAccessIssue]
    part.replace(file)
