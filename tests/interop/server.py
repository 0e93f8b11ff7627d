"""A server on the official Python SDK, with the tools of the matrix.

    python server.py ADDRESS [stateless]

With `stateless`, the revisions up to 2025-11-25 are served without sessions, too. Port 0 takes a free one. Prints
`listening on http://127.0.0.1:<port>/mcp` when it accepts connections.
"""

import socket
import sys
from typing import Annotated

import anyio
import uvicorn
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.resolve import Elicit, Resolve, Sample
from mcp.server.request_state import RequestStateSecurity
from mcp.server.streamable_http import EventMessage, EventStore
from mcp_types import CreateMessageResult, SamplingMessage, TextContent
from pydantic import BaseModel

STATELESS = sys.argv[2:] == ["stateless"]

# The key is shared, so that either of two servers takes up what the other has asked.
server = MCPServer("python", request_state_security=RequestStateSecurity(keys=["a key of 32 bytes, for tests only"]))


class Gate:
    def __init__(self) -> None:
        self.fate = "held"
        self.opened = anyio.Event()


gates: dict[str, Gate] = {}


@server.tool()
async def echo(text: str) -> str:
    return text


@server.tool()
async def hold(gate: str, context: Context) -> str:
    it = gates[gate] = Gate()
    try:
        for progress in (1, 2, 3):
            await context.report_progress(progress)
        await it.opened.wait()
    except anyio.get_cancelled_exc_class():
        it.fate = "cancelled"
        raise
    it.fate = "opened"
    return it.fate


@server.tool()
async def open(gate: str) -> str:
    if gate not in gates:
        return "unknown"
    gates[gate].opened.set()
    return "opened"


@server.tool()
async def fate(gate: str) -> str:
    return gates[gate].fate if gate in gates else "unknown"


class Person(BaseModel):
    name: str


async def name() -> Elicit[Person]:
    return Elicit("What is your name?", Person)


async def answer() -> Sample:
    content = TextContent(type="text", text="Say something.")
    return Sample([SamplingMessage(role="user", content=content)], max_tokens=10)


@server.tool()
async def ask(person: Annotated[Person, Resolve(name)]) -> str:
    return f"Hello, {person.name}!"


@server.tool()
async def sample(said: Annotated[CreateMessageResult, Resolve(answer)]) -> str:
    return f"The model says {said.content.text}."


@server.tool()
async def announce(context: Context) -> str:
    if context.protocol_version == "2026-07-28":
        await context.notify_tools_changed()
    elif STATELESS:
        return "unsupported"
    else:
        await context.session.send_tool_list_changed()
    return "announced"


@server.tool()
async def hang_up(context: Context) -> str:
    if context.request_context.close_sse_stream is None:
        return "unsupported"
    # The SDK closes it also before its priming event is sent, and without that event's id no client can come back.
    await context.request_context.request.scope["stream_begun"].wait()
    await context.close_sse_stream()
    return "answered on a resumed stream"


@server.tool()
async def session(context: Context) -> str:
    return context.headers.get("mcp-session-id", "")


class Events(EventStore):
    """Keeps every event for ever: what a client asks for comes within the same second."""

    def __init__(self) -> None:
        self.events = []

    async def store_event(self, stream_id, message):
        self.events.append((stream_id, message))
        return str(len(self.events) - 1)

    async def replay_events_after(self, last_event_id, send_callback):
        wanted, _ = self.events[int(last_event_id)]
        for number, (stream_id, message) in enumerate(self.events):
            if number > int(last_event_id) and stream_id == wanted and message is not None:
                await send_callback(EventMessage(message, str(number)))
        return wanted


def telling(app):
    """`app`, with an event in the scope of each request that says that a part of its answer's body is sent."""

    async def told(scope, receive, send):
        scope["stream_begun"] = anyio.Event()

        async def send_and_tell(message):
            await send(message)
            if message["type"] == "http.response.body":
                scope["stream_begun"].set()

        await app(scope, receive, send_and_tell)

    return told


class Server(uvicorn.Server):
    async def startup(self, sockets=None) -> None:
        await super().startup(sockets)
        print(f"listening on http://127.0.0.1:{sockets[0].getsockname()[1]}/mcp", flush=True)


host, port = sys.argv[1].split(":")
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind((host, int(port)))
app = server.streamable_http_app(stateless_http=STATELESS, event_store=Events(), retry_interval=10)
Server(uvicorn.Config(telling(app), log_level="warning")).run(sockets=[listener])
