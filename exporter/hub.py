"""Models of the Hugging Face Hub: an id and a revision to a folder in the hub's cache, or one sentence why not.

The protocol, the cache and its locks are huggingface_hub's. This module chooses which files are needed, shows how far a
download is, and turns what can go wrong into a sentence. It does not look at what the files say: that is source.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import os
import threading
import warnings
from collections.abc import Iterator
from glob import escape
from pathlib import Path
from typing import Any

from onnxpress.exporter.config import ExportConfig, ProgressHook
from onnxpress.exporter.recipe import recipe_names
from onnxpress.runtime.errors import InvalidInputError, UnsupportedModelError, first_line

CARD = "README.md"
MODEL_PATTERNS = ("*.json", "*.safetensors", "*.txt", "*.model", "*.py", "*.jinja")
"""What transformers or sentence-transformers may read of a model, as patterns in which `*` also matches `/`."""
_PICKLE_PATTERNS = ("*pytorch_model*.bin", "*adapter_model.bin")  # and not optimizer.pt, training_args.bin, ...


@dataclasses.dataclass(frozen=True)
class FilePatterns:
    """Which files of a repository to fetch: those that match one of `allow` and none of `ignore` (fnmatch; `*` also
    matches `/`)."""

    allow: tuple[str, ...]
    ignore: tuple[str, ...] = ()


MODEL_FILES = FilePatterns(
    allow=(*MODEL_PATTERNS, CARD),
    ignore=(
        # Exports for other runtimes, with their own copies of the configuration.
        *("onnx/*", "*/onnx/*", "openvino/*", "*/openvino/*", "coreml/*", "*.mlpackage/*"),
        # Further copies of the weights: of the training, in the author's format, in half precision.
        *("checkpoint-*/*", "original/*", "*.fp16.safetensors", "*.fp16-*.safetensors"),
    ),
)


ONNX_FILES = FilePatterns(
    allow=tuple(f"{folder}model.onnx{weights}" for folder in ("", "onnx/") for weights in ("", "_data", ".data"))
)
"""The float32 graph as optimum and sentence-transformers lay it, with its weights."""


@dataclasses.dataclass(frozen=True)
class Fetched:
    """A model of the hub on the local disk."""

    folder: Path
    """The snapshot in the hub's cache."""
    commit: str
    """The full hash of the commit the revision stands for."""


def fetch_model(hub_id: str, config: ExportConfig, progress: ProgressHook | None = None) -> Fetched:
    """Fetch what PyTorch loads a model from, or, where there are no safetensors, its ONNX file. Pickles come only if
    `config.allow_pickle` says so, and only for those of the model's folders that have no safetensors.

    Raises:
        InvalidInputError: the model cannot be fetched (see `fetch`).
        UnsupportedModelError: its weights are only there as pickles, and these are not allowed.
    """
    fetched = fetch(hub_id, config, MODEL_FILES, progress)
    with_safetensors = {path.parent.relative_to(fetched.folder) for path in fetched.folder.rglob("*.safetensors")}
    if config.allow_pickle:
        needless = [
            f"{escape(folder.as_posix())}/*" if folder.parts else pattern.removeprefix("*")
            for folder in sorted(with_safetensors)
            for pattern in _PICKLE_PATTERNS
        ]
        pickles = FilePatterns(_PICKLE_PATTERNS, (*MODEL_FILES.ignore, *needless))
        return fetch(hub_id, dataclasses.replace(config, revision=fetched.commit), pickles, progress)
    if not with_safetensors:
        at_commit = dataclasses.replace(config, revision=fetched.commit)
        fetched = fetch(hub_id, at_commit, ONNX_FILES, progress)
        if not any(fetched.folder.rglob("model.onnx")):
            _refuse_pickles(hub_id, fetched.commit)
    return fetched


def fetch(
    hub_id: str,
    config: ExportConfig,
    patterns: FilePatterns = MODEL_FILES,
    progress: ProgressHook | None = None,
) -> Fetched:
    """Fetch the files of a hub model that are not in the hub's cache yet.

    Where the hub cannot be asked, because it is down, refuses or HF_HUB_OFFLINE is set, a complete copy in the cache
    is used instead.

    Args:
        hub_id: `owner/name`, or `name` for a few old models.
        config: of which only `revision` counts: a branch, a tag or a full commit; None: the branch `main`.
        patterns: which files.
        progress: called during step `load` with what was downloaded so far; also from other threads, one at a time.

    Raises:
        InvalidInputError: there is no such model or revision, it may not be read, or it cannot be downloaded or stored.
    """
    download = _Download(hub_id, progress)
    try:
        with _reports_of_the_client(download):
            folder = _snapshot(hub_id, config.revision, patterns, download)
    # The client, httpx below it and hf_xet raise many types; all of them mean that there is no model to work with.
    except Exception as error:
        raise InvalidInputError(_sentence(error, hub_id, config.revision, download.started)) from error
    if not download.started:
        download.say(f"{hub_id} at commit {folder.name[:8]} from the cache, without asking the hub")
    return Fetched(folder, folder.name)


def _snapshot(hub_id: str, revision: str | None, patterns: FilePatterns, download: _Download) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    allow, ignore = list(patterns.allow), list(patterns.ignore)
    try:
        found = huggingface_hub.snapshot_download(
            hub_id, revision=revision, allow_patterns=allow, ignore_patterns=ignore, tqdm_class=download.bar_class()
        )
        return Path(found)
    except errors.LocalEntryNotFoundError:
        # Another program may have cached the model without its card, which an export can do without.
        with contextlib.suppress(errors.LocalEntryNotFoundError):
            found = huggingface_hub.snapshot_download(
                hub_id,
                revision=revision,
                allow_patterns=allow,
                ignore_patterns=[*ignore, CARD],
                local_files_only=True,
            )
            return Path(found)
        raise


def _refuse_pickles(hub_id: str, commit: str) -> None:
    """Say that a model has only pickles, if that is why there are no safetensors and the hub can be asked."""
    import huggingface_hub

    try:
        names = huggingface_hub.HfApi().list_repo_files(hub_id, revision=commit)
    except Exception:  # noqa: BLE001
        return  # a question for a better sentence only; whoever reads the folder finds that it has no weights
    pickles = sorted(name for name in names if name.endswith(".bin") and "model" in Path(name).name)
    if pickles:
        raise UnsupportedModelError(
            f"the hub model {hub_id!r} has its weights only as a Python pickle ({pickles[0]}), which can run code when "
            "read; convert it to safetensors, or give --allow-pickle if you trust its author"
        )


class _Download:
    """How far a download is, as the client's progress bars are told, for the progress hook."""

    def __init__(self, hub_id: str, progress: ProgressHook | None) -> None:
        self.hub_id = hub_id
        self.started = False
        """Whether the hub has answered what there is to download."""
        self._progress = progress
        self._lock = threading.Lock()
        self._bars: list[Any] = []

    def say(self, detail: str) -> None:
        """Tell the hook, if there is one."""
        if self._progress is not None:
            with self._lock:
                self._progress("load", detail, None)

    def bar_class(self) -> type[Any]:
        """A class for the client's bars that draws nothing. The client makes them when it knows the files."""
        from huggingface_hub.utils import tqdm

        download = self

        class Bar(tqdm):
            def __init__(self, *arguments: Any, **options: Any) -> None:
                super().__init__(*arguments, **{**options, "disable": True})
                download.started = True
                if options.get("unit") == "B":  # the others count files
                    download._bars.append(self)

            def update(self, n: float | None = 1) -> None:
                self.n += n or 0  # a disabled bar does not count
                if self in download._bars:
                    download.moved()

        return Bar

    def moved(self) -> None:
        """Tell how many bytes are here. The total grows while files begin; of two bars for the same bytes, one for the
        network and one for the disk, the one that is ahead counts."""
        done = max(bar.n for bar in self._bars)
        total = max(max(bar.total or 0 for bar in self._bars), done)
        self.say(f"downloading {self.hub_id}: {done / 1e6:,.1f} of {total / 1e6:,.1f} MB")


class _ToHook(logging.Handler):
    """What the client logs (that it waits, that it resumes) for the progress hook."""

    def __init__(self, download: _Download) -> None:
        super().__init__()
        self._download = download

    def emit(self, record: logging.LogRecord) -> None:
        # Of more lines, the last says what the client does about it.
        self._download.say("".join(record.getMessage().strip().splitlines()[-1:]))


@contextlib.contextmanager
def _reports_of_the_client(download: _Download) -> Iterator[None]:
    """While inside, what the client would print goes to the hook - unless the user asked for it by HF_HUB_VERBOSITY."""
    from huggingface_hub.utils import logging as client_logging

    logger = client_logging.get_logger()
    handlers = logger.handlers
    if "HF_HUB_VERBOSITY" not in os.environ:
        logger.handlers = [_ToHook(download)]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as that the disk has too little space, before the error says it
            yield
    finally:
        logger.handlers = handlers


def _sentence(error: Exception, hub_id: str, revision: str | None, started: bool) -> str:
    """What went wrong and what to do, for a person."""
    from huggingface_hub import constants, errors

    hub, cache = constants.ENDPOINT, constants.HF_HUB_CACHE
    incomplete = isinstance(error, errors.LocalEntryNotFoundError)  # also says why the hub was not asked
    cause: BaseException = error.__cause__ if incomplete and error.__cause__ is not None else error
    if isinstance(cause, errors.HFValidationError):
        return f"{hub_id!r} is neither a folder, a recipe nor a hub id (owner/name); {_known()}"
    if isinstance(cause, errors.HfHubHTTPError):
        return _refusal(cause, hub_id, revision)
    if isinstance(cause, errors.OfflineModeIsEnabled):
        return (
            f"HF_HUB_OFFLINE is set, and {cache} has no complete copy of {hub_id!r}"
            f"{f' at {revision!r}' if revision else ''}; unset it to download the model, or give a local folder"
        )
    storage = _storage_problem(cause, hub_id, cache)
    if storage is not None:
        return storage
    what = f"{type(cause).__name__}: {first_line(cause)}"
    if started:
        return f"the download of {hub_id!r} broke off ({what}); run this again: the files that arrived whole are kept"
    if isinstance(cause, errors.FileMetadataError | ValueError | LookupError | TypeError):
        return f"{hub} does not answer as a hub does ({what}); check HF_ENDPOINT and the proxy"
    return (
        f"there is no folder {hub_id!r}, and the hub at {hub} cannot be reached to look for a model of that name "
        f"({what}); check the network, the proxy and HF_ENDPOINT; {_known()}"
    )


def _refusal(error: Any, hub_id: str, revision: str | None) -> str:
    """What the hub answered, for a person. `error` is huggingface_hub's HfHubHTTPError."""
    import huggingface_hub
    from huggingface_hub import constants, errors

    page, status = f"{constants.ENDPOINT}/{hub_id}", error.response.status_code
    has_token = huggingface_hub.get_token() is not None
    if isinstance(error, errors.RevisionNotFoundError):
        if revision is None:
            return f"the hub model {hub_id!r} has no branch 'main'; name a branch, a tag or a commit with --revision"
        return f"the hub model {hub_id!r} has no revision {revision!r}; give a branch, a tag or a full commit of {page}"
    if isinstance(error, errors.GatedRepoError):
        if has_token:
            return f"the hub model {hub_id!r} is gated, and the token in use has no access; ask for it at {page}"
        return f"the hub model {hub_id!r} is gated; ask for access at {page} and set HF_TOKEN to your token"
    if isinstance(error, errors.RepositoryNotFoundError):
        todo = "the rights of the token in use" if has_token else "set HF_TOKEN if it is private"
        return f"the hub has no model {hub_id!r} that you may read; check the name, and {todo}; {_known()}"
    if status == 401:
        return "the hub does not accept the token in use (401); renew HF_TOKEN, or log in again with 'hf auth login'"
    if status == 403:
        return f"the hub refuses to give {hub_id!r} (403: {_said(error)}); check the rights of the token in use"
    if status == 429:
        seconds = error.response.headers.get("retry-after", "")
        when = f"in {seconds} seconds" if seconds.isdigit() else "in some minutes"
        more = "" if has_token else ", or set HF_TOKEN, with which more is allowed"
        return f"the hub was asked too often (429); try again {when}{more}"
    if status >= 500:
        return (
            f"the hub at {constants.ENDPOINT} has a problem of its own ({status}), and there is no complete copy of "
            f"{hub_id!r} in {constants.HF_HUB_CACHE}; try again later"
        )
    return f"the hub at {constants.ENDPOINT} answers {status} for {hub_id!r}: {_said(error)}"


def _storage_problem(error: BaseException, hub_id: str, cache: str) -> str | None:
    number = error.errno if isinstance(error, OSError) else None
    # hf_xet writes files itself and has only the text.
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "No space left" in str(error):
        return (
            f"{hub_id!r} does not fit onto the disk of {cache} ({first_line(error)}); free some space, or set HF_HOME "
            "to a folder on a larger disk"
        )
    if number in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
        return f"the hub's cache {cache} cannot be written ({first_line(error)}); set HF_HOME to a folder that can be"
    return None


def _said(error: Any) -> str:
    return " ".join((error.server_message or error.response.reason_phrase or "no reason given").split())


def _known() -> str:
    return f"recipes: {', '.join(recipe_names())}"
