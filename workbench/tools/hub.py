"""Uploading an export to a model hub."""

from __future__ import annotations

from pathlib import Path

from workbench.core.errors import BadInput


class HubUnreachable(RuntimeError):
    """The hub did not answer, or failed. The export is on disk, and the same command pushes it again."""


def check_repo(repo: str) -> None:
    """Raises BadInput for what can't name a hub repository."""
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except ValueError as error:
        raise BadInput(f"--push {repo}: {first_line(error)}") from None


def push_export(folder: Path, repo: str, private: bool = False) -> None:
    """Upload an export to a hub repository, created if needed. Raises BadInput where the hub refuses, and
    HubUnreachable where it does not answer. With `private`, nothing is uploaded to a repository that is public."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        api = HfApi()
        api.create_repo(repo, exist_ok=True, private=private or None)
        is_public = private and not api.repo_info(repo).private
        if not is_public:
            api.upload_folder(folder_path=str(folder), repo_id=repo)
    except (OfflineModeIsEnabled, ValueError) as error:
        raise BadInput(f"--push {repo}: {first_line(error)}; exported to {folder}") from error
    # the hub's own error is one of its HTTP client's, whichever that is in this version, and so are a refused
    # connection's
    except (OSError, *HfHubHTTPError.__bases__) as error:
        code = getattr(getattr(error, "response", None), "status_code", 0)
        if 400 <= code < 500 and code not in (408, 429):  # those two ask for another try
            raise BadInput(f"--push {repo}: {first_line(error)}; exported to {folder}") from error
        raise HubUnreachable(
            f"--push {repo}: {first_line(error)}; exported to {folder}, the same command pushes it from there"
        ) from error
    if is_public:
        raise BadInput(
            f"--push {repo}: is there already, and public; make it private there, or name another; exported to {folder}"
        )


def first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "refused")
