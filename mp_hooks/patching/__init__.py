"""mp-patch: the smallest edit of a host's own files that lets its command take MotionPrompt's options.

patches/<name>/manifest.yaml says what is edited, `fetch` gets the pinned host, `apply`, `status` and `revert` work on
any checkout of it. A host that loads packs of nodes is not edited: a `Pack` is linked into it.
"""

from mp_hooks.patching.checkout import (
    HALF_PATCHED,
    OUTDATED,
    PATCHED,
    UNPATCHED,
    FileStatus,
    Status,
    apply,
    completing,
    diff,
    require_patched,
    revert,
    status,
)
from mp_hooks.patching.fetch import fetch, is_present
from mp_hooks.patching.manifest import Manifest, Upstream, default_checkout, load, names, read, requirements
from mp_hooks.patching.pack import PACKS, Pack

__all__ = [
    "HALF_PATCHED",
    "OUTDATED",
    "PACKS",
    "PATCHED",
    "UNPATCHED",
    "FileStatus",
    "Manifest",
    "Pack",
    "Status",
    "Upstream",
    "apply",
    "completing",
    "default_checkout",
    "diff",
    "fetch",
    "is_present",
    "load",
    "names",
    "read",
    "require_patched",
    "requirements",
    "revert",
    "status",
]
