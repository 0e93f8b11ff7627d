"""The official Python SDK, in both eras. The stateless one is asked for as by default: by a probe.

    python client.py URL ERA

Steps and protocol are those of matrix.mjs.
"""

import json
import sys
import traceback
from contextlib import AsyncExitStack, nullcontext

import anyio
import mcp_types as types
from mcp import Client, MCPError

URL, ERA = sys.argv[1:]
LIMIT_SECONDS = 20
# For what enters or leaves the SDK's task group, which must not be within a scope of ours; the runner has a limit, too.
NO_LIMIT = nullcontext
TOOLS = "announce ask echo fate hang_up hold open sample session"


class Fact(Exception):
    """What came of a step that is not ok."""


async def main() -> None:
    tools_changed = anyio.Event()

    async def heard(message) -> None:
        if isinstance(message, types.ToolListChangedNotification):
            tools_changed.set()

    async def connected(stack: AsyncExitStack) -> Client:
        client = await stack.enter_async_context(
            Client(
                URL,
                mode="legacy" if ERA == "session" else "auto",
                elicitation_callback=elicited,
                sampling_callback=sampled,
                message_handler=heard,
            )
        )
        expect(ERA == "stateless", client.protocol_version == "2026-07-28")
        return client

    stack = AsyncExitStack()
    client: Client | None = None

    async def connect() -> None:
        nonlocal client
        client = await connected(stack)

    await fact("connect", connect, limit=NO_LIMIT)
    if client is None:
        return

    async def list_tools() -> None:
        tools = await client.list_tools()
        expect(TOOLS, " ".join(sorted(tool.name for tool in tools.tools)))

    async def echo() -> None:
        expect("through and back ✓", await call(client, "echo", text="through and back ✓"))

    async def progress() -> None:
        seen = []
        whole = anyio.Event()
        result = None

        async def hold() -> None:
            nonlocal result
            result = await call(client, "hold", on_progress=on_progress, gate="progress")
            whole.set()

        async def on_progress(progress, total, message) -> None:
            seen.append(progress)
            if len(seen) == 3:
                whole.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hold)
            # The call ends only after this, so that all progress has come before its result.
            await whole.wait()
            await until("opened", client, "open", gate="progress")
        expect("opened", result)
        expect([1, 2, 3], seen)

    async def elicitation() -> None:
        expect("Hello, Ada!", await call(client, "ask"))

    async def sampling() -> None:
        expect("The model says hello.", await call(client, "sample"))

    async def notification() -> None:
        async def announce() -> None:
            while not tools_changed.is_set():
                await one_answers("announced", client, "announce")
                await anyio.sleep(0.02)

        if ERA == "session":
            return await announce()
        async with client.listen(tools_list_changed=True) as changes, anyio.create_task_group() as tasks:
            tasks.start_soon(announce)
            await anext(changes)
            tools_changed.set()

    async def resumption() -> None:
        if ERA == "stateless":
            raise Fact("unsupported by era")
        expect("answered on a resumed stream", supported(await call(client, "hang_up")))

    session = await call(client, "session")

    async def cancellation() -> None:
        if ERA == "session" and not session:
            raise Fact("unsupported by server")
        async with anyio.create_task_group() as tasks:

            async def started(progress, total, message) -> None:
                tasks.cancel_scope.cancel()

            tasks.start_soon(lambda: call(client, "hold", on_progress=started, gate="cancellation"))
        await until("cancelled", client, "fate", gate="cancellation")

    await fact("list", list_tools)
    await fact("call", echo)
    await fact("progress", progress)
    await fact("elicitation", elicitation)
    await fact("sampling", sampling)
    await fact("notification", notification)
    await fact("resumption", resumption)
    await fact("cancellation", cancellation)
    await fact("end", stack.aclose, limit=NO_LIMIT, session=session)

    # What is answered, or not, in the place of a backend that was there a moment ago.
    for name, event in (("404", "restart"), ("502", "stop"), ("503", "refuse")):

        async def fault() -> None:
            async with AsyncExitStack() as stack:
                client = await connected(stack)
                await call(client, "echo", text="before")
                await need(event)
                expect("after", await call(client, "echo", text="after"))

        await fact(name, fault)
        await need("start")


async def elicited(context, params) -> types.ElicitResult:
    return types.ElicitResult(action="accept", content={"name": "Ada"})


async def sampled(context, params) -> types.CreateMessageResult:
    content = types.TextContent(type="text", text="hello")
    return types.CreateMessageResult(role="assistant", content=content, model="stand-in")


async def call(client: Client, tool: str, *, on_progress=None, **arguments: str) -> str:
    result = await client.call_tool(tool, arguments, progress_callback=on_progress)
    text = "\n".join(block.text for block in result.content)
    if result.is_error:
        print(text, file=sys.stderr)
        raise Fact("error: the tool failed")
    return text


async def until(wanted: str, client: Client, tool: str, **arguments: str) -> None:
    """Asks until the answer is this; the limit is the step's."""
    while not await one_answers(wanted, client, tool, **arguments):
        await anyio.sleep(0.02)


async def one_answers(wanted: str, client: Client, tool: str, **arguments: str) -> bool:
    """Whether one of several calls at once has this answer; matrix.mjs says why."""
    found = []

    async def ask() -> None:
        found.append(supported(await call(client, tool, **arguments)))

    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(ask)
    return wanted in found


async def fact(step: str, check, limit=lambda: anyio.fail_after(LIMIT_SECONDS), **more) -> None:
    """Prints what came of a step."""
    fact = "ok"
    try:
        with limit():
            await check()
    except Exception as error:
        traceback.print_exc()
        fact = class_of(error)
    print(json.dumps({"step": step, "fact": fact, **more}), flush=True)


async def need(what: str) -> None:
    """Has the runner do something to the server."""
    print(json.dumps({"need": what}), flush=True)
    await anyio.to_thread.run_sync(sys.stdin.readline)


def expect(wanted, found) -> None:
    if found != wanted:
        raise Fact(f"error: {json.dumps(found)} is not {json.dumps(wanted)}")


def supported(result: str) -> str:
    if result == "unsupported":
        raise Fact("unsupported by server")
    return result


def class_of(error: BaseException) -> str:
    """What is the same each time in an error: a status or a code."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    match error:
        case Fact():
            return str(error)
        case TimeoutError():
            return f"no answer within {LIMIT_SECONDS} s"
        case MCPError():
            return f"error: JSON-RPC {error.code}"
    return f"error: {type(error).__name__}"


anyio.run(main)
