"""Uploading a saved model to the Hugging Face hub, as a repository of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]  # that of whichever HTTP library the hub's client stands on
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from calibrant.errors import OutputError
from calibrant.models.quiet import quoted
from calibrant.models.saving import MANIFEST, read_manifest

_MADE_BY_THE_HUB: Final = frozenset({".gitattributes"})
"""What a repository holds that nothing was pushed to yet."""
_NOT_ALLOWED: Final = (401, 403)


def check_repository(name: str, run_id: str) -> None:
    """Raise `OutputError` unless the model of a run can be pushed to the repository `name`, which
    is new, empty, or holds that model already. Changes nothing.
    """
    with _in_our_words(name):
        validate_repo_id(name)
        if name.count("/") != 1:
            raise _no_name(name, "it doesn't say whose")
        if get_token() is None:
            raise OutputError(
                f"nobody is logged in to the hub, so {name!r} can't be written; run "
                "`hf auth login` first, or set HF_TOKEN",
                subject=name,
            )
        hub = HfApi()
        try:
            repository = hub.model_info(name)
        except RepositoryNotFoundError:
            return
        files = {file.rfilename for file in repository.siblings or ()} - _MADE_BY_THE_HUB
        if MANIFEST in files and _run_there(hub, name) == run_id:
            return
        if files:
            raise OutputError(
                f"the repository {name!r} already holds another model; name a new one, or delete "
                "that one on the hub first",
                subject=name,
            )


def push_folder(folder: Path, name: str, private: bool) -> str:
    """Upload all files of `folder` to the repository `name`, which is made if it isn't there, and
    return its address. Raises `OutputError` where that fails.
    """
    with _in_our_words(name):
        hub = HfApi()
        repository = hub.create_repo(name, private=private, exist_ok=True)
        hub.upload_folder(
            repo_id=name, folder_path=folder, commit_message="Compressed with calibrant"
        )
        return str(repository)


def _run_there(hub: HfApi, name: str) -> str:
    """Return the id of the run whose model a repository holds, as its manifest says."""
    with TemporaryDirectory() as copy:
        hub.hf_hub_download(name, MANIFEST, local_dir=copy)
        manifest = read_manifest(copy) or {}
    return str(manifest.get("id", ""))


@contextmanager
def _in_our_words(name: str) -> Iterator[None]:
    """While it lasts, errors of the hub's client become an `OutputError` that says what to do."""
    try:
        yield
    except HFValidationError as error:
        raise _no_name(name, quoted(error)) from error
    except HfHubHTTPError as error:
        advice = "try again later"
        if error.response.status_code in _NOT_ALLOWED:
            advice = "log in as somebody who may write there, with `hf auth login`"
        raise OutputError(
            f"the hub refused {name!r} ({quoted(error)}); {advice}", subject=name
        ) from error
    except (HTTPError, OSError, RuntimeError) as error:
        raise OutputError(
            f"{name!r} couldn't be uploaded to the hub ({quoted(error)}); save it to a folder, or "
            "try again",
            subject=name,
        ) from error


def _no_name(name: str, reason: str) -> OutputError:
    return OutputError(
        f"{name!r} is no name of a repository on the hub ({reason}); give it as user/name",
        subject=name,
    )
