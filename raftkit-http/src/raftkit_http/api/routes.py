"""The table of routes, and how they get onto a node's server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import hdrs, web

from raftkit_core.errors import BadRequest, NotFound
from raftkit_http.access import Access
from raftkit_http.api import cluster, health, kv, openapi, overview, sessions, snapshot_file, socket, ui, watch, write
from raftkit_http.api.decode import quoted
from raftkit_http.api.envelope import failure, success
from raftkit_http.api.guard import ApiLimits, Call, ClientApi, Role, Route
from raftkit_http.api.handle import RaftHandle
from raftkit_http.api.schema import IndexAnswer, RouteAnswer

if TYPE_CHECKING:
    from raftkit_http.server import HttpServer


EVERYTHING_ELSE = "/{tail:.*}"


def routes() -> list[Route]:
    """Every route, in matching order. A key may hold slashes, so ``/cas`` stands before the plain key."""
    return [
        Route(method="GET", path="/v1", role="open", summary="This list", handler=get_index),
        *_data_routes(),
        *_cluster_routes(),
        Route(method="GET", path="/ui", role="open", summary="The cluster as a page", handler=ui.get_ui, light=True),
        Route(method="GET", path="/livez", role="open", summary="Is the node alive", handler=health.get_livez),
        Route(method="GET", path="/readyz", role="open", summary="Can it serve now", handler=health.get_readyz),
        Route(
            method="GET",
            path="/metrics",
            role="read",
            summary="Prometheus metrics",
            handler=health.get_metrics,
            light=True,
        ),
        Route(
            method="GET",
            path="/openapi.json",
            role="open",
            summary="This API as OpenAPI 3.1",
            handler=openapi.get_openapi,
            light=True,
        ),
    ]


def _data_routes() -> list[Route]:
    consistency = "consistency"
    key = "/v1/kv/{key:.+}"
    write_: Role = "write"
    return [
        Route(method="POST", path="/v1/write", role=write_, summary="Write a command", handler=write.post_write),
        Route(method="POST", path="/v1/read", role="read", summary="Read a key or a list", handler=kv.post_read),
        Route(
            method="POST",
            path="/v1/sessions",
            role=write_,
            summary="Open a client session",
            handler=sessions.post_session,
        ),
        Route(
            method="POST",
            path="/v1/sessions/keep-alive",
            role=write_,
            summary="Keep a session alive",
            handler=sessions.post_keep_alive,
        ),
        Route(
            method="POST",
            path="/v1/sessions/close",
            role=write_,
            summary="Close a session",
            handler=sessions.post_close,
        ),
        Route(
            method="GET",
            path="/v1/kv",
            role="read",
            summary="List keys in order",
            handler=kv.list_keys,
            query=("prefix", "limit", "after", consistency),
        ),
        Route(
            method="POST",
            path="/v1/kv/{key:.+}/cas",
            role=write_,
            summary="Set a key if it holds the expected value",
            handler=kv.cas_key,
        ),
        Route(method="GET", path=key, role="read", summary="A key", handler=kv.get_key, query=(consistency,)),
        Route(method="PUT", path=key, role=write_, summary="Set a key", handler=kv.put_key, query=("if_revision",)),
        Route(
            method="DELETE",
            path=key,
            role=write_,
            summary="Delete a key",
            handler=kv.delete_key,
            query=("if_revision",),
        ),
        Route(
            method="GET",
            path="/v1/watch",
            role="read",
            summary="Changes of keys as server-sent events",
            handler=watch.get_watch,
            query=("prefix", "from_revision"),
            long_lived=True,
        ),
        Route(
            method="GET",
            path="/v1/ws",
            role="read",  # and each write on it needs more
            summary="WebSocket for pipelining",
            handler=socket.get_socket,
            long_lived=True,
        ),
    ]


def _cluster_routes() -> list[Route]:
    admin: Role = "admin"
    return [
        Route(
            method="GET",
            path="/v1/status",
            role="read",
            light=True,
            summary="This node about itself",
            handler=cluster.get_status,
            query=("digest",),
        ),
        Route(
            method="GET",
            path="/v1/cluster",
            role="read",
            summary="Every member, as this node sees it, and what that means",
            handler=overview.get_cluster,
            query=("events_after",),
        ),
        Route(
            method="GET",
            path="/v1/events",
            role="read",
            summary="What happened to this node lately",
            handler=overview.get_events,
            query=("after", "limit"),
        ),
        Route(
            method="GET",
            path="/v1/members",
            role="read",
            summary="Members",
            handler=cluster.get_members,
            light=True,
        ),
        Route(
            method="GET",
            path="/v1/leader",
            role="read",
            summary="Who leads",
            handler=cluster.get_leader,
            light=True,
        ),
        Route(
            method="POST",
            path="/v1/initialize",
            role=admin,
            summary="Make a new cluster",
            handler=cluster.post_initialize,
        ),
        Route(method="POST", path="/v1/members", role=admin, summary="Add a learner", handler=cluster.post_member),
        Route(
            method="POST",
            path="/v1/members/change",
            role=admin,
            summary="Make exactly these the voters",
            handler=cluster.post_change,
        ),
        Route(
            method="POST",
            path="/v1/members/promote",
            role=admin,
            summary="Make learners voters",
            handler=cluster.post_promote,
        ),
        Route(
            method="POST",
            path="/v1/members/set",
            role=admin,
            summary="Add what is missing and make exactly these the voters",
            handler=cluster.post_set,
        ),
        Route(
            method="POST",
            path="/v1/members/remove",
            role=admin,
            summary="Remove learners",
            handler=cluster.post_remove,
        ),
        Route(
            method="DELETE",
            path="/v1/members/{id}",
            role=admin,
            summary="Remove a learner",
            handler=cluster.delete_member,
        ),
        Route(
            method="POST",
            path="/v1/leader/transfer",
            role=admin,
            summary="Hand leadership over",
            handler=cluster.post_transfer,
        ),
        Route(
            method="POST",
            path="/v1/snapshot",
            role=admin,
            summary="Snapshot this node",
            handler=cluster.post_snapshot,
        ),
        Route(
            method="GET",
            path="/v1/snapshot",
            role=admin,
            summary="The bytes of this node's snapshot",
            handler=snapshot_file.get_snapshot,
            long_lived=True,
        ),
    ]


async def get_index(call: Call) -> web.Response:
    listed = [
        RouteAnswer(method=route.method, path=openapi.path_of(route), summary=route.summary, role=route.role)
        for route in routes()
    ]
    return success(call.request, "index", IndexAnswer(node=call.raft.id, routes=listed))


async def no_such_route(call: Call) -> web.Response:
    """405 where the path exists with another method, else 404: both with an envelope."""
    allowed: set[str] = set()
    for resource in call.request.app.router.resources():
        if resource.canonical != "/{tail}":
            allowed |= (await resource.resolve(call.request))[1]
    if allowed:
        offered = ", ".join(sorted(allowed - {hdrs.METH_HEAD}))
        error = BadRequest(f"{quoted(call.request.method)} is not offered here", hint=f"use {offered}")
        response = failure(call.request, error, caller=call.caller, status=405)
        response.headers[hdrs.ALLOW] = offered
        return response
    raise NotFound(f"there is no {quoted(call.request.path)}", hint="GET /v1 lists what there is; /ui is the page")


def route_defs(api: ClientApi) -> list[web.RouteDef]:
    """What aiohttp registers. The last one catches every other path."""
    last = Route(method="*", path=EVERYTHING_ELSE, role="open", summary="", handler=no_such_route)
    return [web.route(route.method, route.path, api.guarded(route)) for route in [*routes(), last]]


def attach(
    server: HttpServer, raft: RaftHandle, limits: ApiLimits | None = None, *, access: Access | None = None
) -> ClientApi:
    """Serve the client API of ``raft`` on ``server``, which must not have started. The server closes it."""
    api = ClientApi(raft, limits, access)
    server.add_routes(route_defs(api))
    server.on_close(api.close)
    return api


__all__ = ["ClientApi", "attach", "route_defs", "routes"]
