"""A TCP proxy in front of a server, with the faults a network has: refuses, cuts, and loses the answer after the server did the work."""

import asyncio
import contextlib
from types import TracebackType


class TcpProxy:
    """Forwards 127.0.0.1:`port`, any free one unless given, to `host`:`to`; `async with` starts and stops it."""

    def __init__(self, host: str, to: int, port: int = 0) -> None:
        self.host, self.to, self.port = host, to, port
        self.refusing = False
        self.refused = asyncio.Event()
        self.answer_lost = asyncio.Event()
        self._lose: bytes | None = None
        self._armed = False
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "TcpProxy":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.close()
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Close every open connection."""
        for writer in list(self._open):
            writer.close()

    def down(self) -> None:
        """Cut, and refuse until `up`."""
        self.refusing = True
        self.refused.clear()
        self.cut()

    def up(self) -> None:
        """Accept again."""
        self.refusing = False

    def lose_answer_to(self, words: bytes) -> None:
        """The next request that holds these bytes reaches the server; its answer is dropped and the connection cut."""
        self._lose = words
        self.answer_lost.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refusing:
            self.refused.set()
            writer.close()
            return
        try:
            far_reader, far_writer = await asyncio.open_connection(self.host, self.to)
        except OSError:
            writer.close()
            return
        armed: list[bool] = []
        tasks = [
            asyncio.create_task(self._pump(reader, far_writer, writer, armed, asking=True)),
            asyncio.create_task(self._pump(far_reader, writer, far_writer, armed, asking=False)),
        ]
        self._open |= {writer, far_writer}
        self._tasks |= set(tasks)
        await asyncio.wait(tasks)
        self._open -= {writer, far_writer}
        self._tasks -= set(tasks)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, other: asyncio.StreamWriter, armed: list[bool], *, asking: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if asking and self._lose is not None and self._lose in data:
                    self._lose = None
                    armed.append(True)
                if not asking and armed:
                    self.answer_lost.set()
                    break
                writer.write(data)
                await writer.drain()
        writer.close()
        other.close()
