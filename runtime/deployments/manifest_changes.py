"""Lets streams and consumers follow another manifest, as far as JetStream takes the changes."""

from runtime.deployments.function_change import STREAM
from runtime.errors import ConfigError, Unavailable
from runtime.function_streams import FunctionStreams, with_own_streams
from runtime.loader import LoadFailure
from runtime.manifest import Manifest
from runtime.observe.logs import get_logger

log = get_logger("runtime.reload")


class ManifestChanges:
    """The manifest that a process serves, and the streams and consumers that it asks for.

    The rules are those of `runtime plan`: a stream or consumer is created or updated in place,
    nothing is deleted, and a change by which messages would be dropped is refused.

    Args:
        manifest: what the process serves.
        streams: its streams and consumers.

    Attributes:
        accepted: the last manifest that was followed, without the entries that were refused.
    """

    def __init__(self, manifest: Manifest, streams: FunctionStreams) -> None:
        self.accepted = manifest
        self._streams = streams

    async def follow(self, manifest: Manifest) -> dict[str, LoadFailure]:
        """Follow another manifest; return why entries of it were refused.

        When JetStream refuses the manifest as a whole, each changed entry is tried alone, so that a
        refused one holds no other back.

        Returns:
            The failures, by function, or by `stream NAME`.
        """
        if manifest.migrations != self.accepted.migrations:
            log.warning("Changed migrations are applied when the host starts again")
        try:
            own = with_own_streams(manifest)
            if not self._streams.agrees_with(own):
                await self._streams.follow(own)
        except Unavailable as failure:
            return self._refuse_all(manifest, failure)
        except ConfigError:
            return await self._follow_in_parts(manifest)
        self.accepted = manifest
        return {}

    async def _follow_in_parts(self, manifest: Manifest) -> dict[str, LoadFailure]:
        refused: dict[str, LoadFailure] = {}
        accepted = self.accepted.model_copy(
            update={
                kind: {
                    name: spec
                    for name, spec in getattr(self.accepted, kind).items()
                    if name in getattr(manifest, kind)
                }
                for kind in ("streams", "functions")
            }
        ).placed_at(manifest.positions)
        for kind, name in self._changed(manifest):
            entries = {**getattr(accepted, kind), name: getattr(manifest, kind)[name]}
            candidate = accepted.model_copy(update={kind: entries}).placed_at(manifest.positions)
            try:
                await self._streams.follow(with_own_streams(candidate))
            except ConfigError as refusal:
                shown = name if kind == "functions" else f"{STREAM}{name}"
                refused[shown] = LoadFailure.of(refusal.problems)
            except Unavailable as failure:
                return {**refused, **self._refuse_all(manifest, failure)}
            else:
                self.accepted = accepted = candidate
        return refused

    def _refuse_all(self, manifest: Manifest, failure: Unavailable) -> dict[str, LoadFailure]:
        remedy = "save the file again, or send SIGHUP, when it answers"
        return {
            name if kind == "functions" else f"{STREAM}{name}": LoadFailure(
                f"{kind.removesuffix('s')} {name}", f"{failure.what} is unavailable", remedy
            )
            for kind, name in self._changed(manifest)
        }

    def _changed(self, manifest: Manifest) -> list[tuple[str, str]]:
        """The new and changed entries: streams first, because consumers need them."""
        return [
            (kind, name)
            for kind in ("streams", "functions")
            for name, spec in getattr(manifest, kind).items()
            if getattr(self.accepted, kind).get(name) != spec
        ]


__all__ = ["ManifestChanges"]
