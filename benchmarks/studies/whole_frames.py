"""Which bundles a study can compare with a network that gets each image as a whole."""

from __future__ import annotations

from flawline.runtime.bundle import Bundle, BundleError


def require_whole_frames(bundle: Bundle) -> None:
    """Refuse a bundle that judges tiles or a part of each image. Raises BundleError."""
    manifest = bundle.manifest
    if manifest.tiles is not None or manifest.inspected_area is not None:
        raise BundleError(
            f"bundle {bundle.path} judges tiles or a part of each image, which this study does not "
            f"compare; give one that was built without --tiles, --include and --exclude"
        )
