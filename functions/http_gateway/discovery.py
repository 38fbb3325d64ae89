"""Keeps the route table current: adds endpoints that answer `$SRV.INFO`, drops those that stop."""

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from functions.http_gateway.route_trust import RouteTrust
from functions.http_gateway.routes import BadRouteError, HttpRoute, Match, RouteTable, parse_route
from functions.http_gateway.settings import GatewaySettings
from runtime import Context, Reply, Unavailable

_ON_DEMAND_BURST = 4
_MAX_WARNINGS = 1000
_AT_ONCE = 100

_Key = tuple[str, tuple[str, ...]]


@dataclass(slots=True)
class _Known:
    route: HttpRoute
    misses: int = 0


class RouteDiscovery:
    """Asks all micro services for their endpoints, in rounds.

    A route that is missing from one round is kept, since an answer may be lost or late; a route
    that is missing from `discovery_misses` consecutive rounds is dropped. A round in which NATS was
    away, or somebody flooded it with answers, does not count.
    """

    def __init__(self, ctx: Context, table: RouteTable) -> None:
        self._ctx = ctx
        self._settings: GatewaySettings = ctx.settings
        self._table = table
        self._trust = RouteTrust(self._settings.registration_key, self._settings.unsigned_subjects)
        self._known: dict[_Key, _Known] = {}
        self._round: asyncio.Task[None] | None = None
        self._credit_spent_at_s = 0.0
        self._warned: set[tuple[str, str]] = set()
        self._is_starting = True

    async def run(self) -> None:
        """Ask in rounds until cancelled."""
        while True:
            try:
                await self._join_round()
            except Exception:
                # An unexpected answer of one service must not end discovery; known routes stay.
                self._ctx.log.exception("A round of discovery failed.")
            await asyncio.sleep(self._settings.discovery_every_s)

    async def find(self, method: str, segments: tuple[str, ...]) -> Match | None:
        """The route of a request; asks all services now when its path is unknown.

        A round in progress may have asked before the endpoint was there, so a further round follows
        it. Concurrent callers share a round. At most one starts per second, after a burst of a few,
        so that requests for random paths do not flood the cluster.
        """
        match = self._table.find(method, segments)
        if match is None and self._round is not None:
            await self._join_round()
            match = self._table.find(method, segments)
        if match is None and self._may_ask():
            await self._join_round()
            match = self._table.find(method, segments)
        return match

    def _may_ask(self) -> bool:
        if self._round is not None:
            return True
        now = asyncio.get_running_loop().time()
        if self._credit_spent_at_s > now + _ON_DEMAND_BURST:
            return False
        self._credit_spent_at_s = max(self._credit_spent_at_s, now) + 1.0
        return True

    async def close(self) -> None:
        """Cancel a round in progress."""
        if self._round is not None:
            self._round.cancel()
            await asyncio.wait([self._round])

    async def _join_round(self) -> None:
        if self._round is None:
            self._round = asyncio.create_task(self._ask())
        # Shielded: a caller that is cancelled must not cancel the round of the other callers.
        await asyncio.shield(self._round)

    async def _ask(self) -> None:
        try:
            replies = await self._ctx.request_many(
                "$SRV.INFO", wait_s=self._settings.discovery_wait_s
            )
        except Unavailable as away:
            self._ctx.log.warning("No round of discovery took place.", reason=away.reason)
        else:
            await self._learn(replies)
        finally:
            self._round = None

    async def _learn(self, replies: list[Reply]) -> None:
        seen: dict[_Key, HttpRoute] = {}
        for number, (service, endpoint) in enumerate(_endpoints(replies)):
            if number % _AT_ONCE == 0:
                # Anybody may answer with as many as they like; requests have their turn meanwhile.
                await asyncio.sleep(0)
            try:
                route = parse_route(endpoint, self._trust)
            except BadRouteError as bad:
                self._warn_once(f"{service}/{str(endpoint.get('name'))[:64]}", str(bad))
                continue
            if route is not None:
                self._choose(seen, route)
        for key, known in list(self._known.items()):
            known.misses = 0 if key in seen else known.misses + 1
            if known.misses >= self._settings.discovery_misses:
                del self._known[key]
                self._ctx.log.info("A route is gone.", method=key[0], path=known.route.path)
        added = 0
        for key, route in seen.items():
            if key not in self._known:
                added += 1
                self._ctx.log.debug(
                    "A route is served.",
                    method=route.method,
                    path=route.path,
                    served_function=route.function,
                )
            self._known[key] = _Known(route)
        if added:
            # The routes of the first rounds are expected, so they are logged at DEBUG. There may be
            # several: in one round not every endpoint of a busy machine answers.
            tell = self._ctx.log.debug if self._is_starting else self._ctx.log.info
            tell("Routes were found.", added=added, served=len(self._known))
        self._is_starting = self._is_starting and added > 0
        self._table.replace(known.route for known in self._known.values())

    def _choose(self, seen: dict[_Key, HttpRoute], route: HttpRoute) -> None:
        """Choose between endpoints with one path: signed, then in force, then first by subject.

        Two endpoints with one subject are two versions of one function during a rolling update.
        """
        rival = seen.setdefault(route.key, route)
        if rival == route:
            return
        held = self._known.get(route.key)
        keep, drop = sorted((rival, route), key=lambda r: _rank(r, held.route if held else None))
        seen[route.key] = keep
        if keep.subject != drop.subject:
            self._warn_once(
                drop.function, f"{drop.method} {drop.path} is served by {keep.function} already"
            )

    def _warn_once(self, service: str, reason: str) -> None:
        if (service, reason) in self._warned or len(self._warned) >= _MAX_WARNINGS:
            return
        self._warned.add((service, reason))
        self._ctx.log.warning("An endpoint is not exposed.", endpoint=service, reason=reason)


def _rank(route: HttpRoute, held: HttpRoute | None) -> tuple[bool, bool, bool, str, str]:
    is_other = held is None or route.subject != held.subject
    return not route.is_signed, is_other, route != held, route.subject, repr(route)


def _endpoints(replies: list[Reply]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for reply in replies:
        try:
            document = orjson.loads(reply.data)
        except orjson.JSONDecodeError:
            continue
        if not isinstance(document, dict) or not isinstance(document.get("endpoints"), list):
            continue
        for endpoint in document["endpoints"]:
            if isinstance(endpoint, dict):
                yield str(document.get("name"))[:64], endpoint
