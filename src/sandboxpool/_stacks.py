"""Where a request is: the stack of a suspended call, and of one that blocks the loop."""

from __future__ import annotations

import inspect
import sys
import traceback
from types import FrameType
from typing import Any

from ._context import RequestLease

_FRAMES = 12  # the innermost ones; those of servers and frameworks say little
_SWITCHES = "sandboxpool.run.cooperative"  # its frames say nothing
_HOOKS = "sandboxpool.hooks."


def stack_of(lease: RequestLease) -> str:
    """Return the stack of a call that is suspended right now, outermost first.

    It follows what each coroutine awaits. The children of a task group are other tasks, which
    can be told from here only by the frame that waits for them.
    """
    if lease.worker:
        return stack_of_thread(lease.worker)[0]
    elsewhere = getattr(lease.sandbox, "stack_of_call", None)
    if elsewhere is not None:  # it runs in a thread of its own
        stack: str = elsewhere()
        return stack
    if lease.blocked is not None:
        return _format(_frames_of(lease.blocked))
    return stack_of_steps(lease.steps)


def stack_of_steps(steps: Any) -> str:
    """Return the stack of a suspended coroutine, outermost first."""
    frames: list[tuple[FrameType, int]] = []
    while steps is not None and len(frames) < 200:
        frame, steps = _frame_and_next(steps)
        if frame is not None:
            frames.append((frame, frame.f_lineno))
    return _format(frames)


def stack_of_thread(thread_id: int) -> tuple[str, list[FrameType]]:
    """Return the stack of a running thread, and its frames, outermost first."""
    frames = _frames_up(sys._current_frames().get(thread_id))
    return _format(frames), [frame for frame, _ in frames]


def _frames_of(blocked: Any) -> list[tuple[FrameType, int]]:
    """Return the frames of a stack that waits in the middle of a step, outermost first."""
    greenlet = blocked.step.waiting
    frames = _frames_up(greenlet.gr_frame)
    while greenlet is not blocked:  # the app has made a greenlet of its own, inside of that stack
        greenlet = greenlet.parent
        frames[:0] = _frames_up(greenlet.gr_frame)
    return [pair for pair in frames if pair[0].f_globals.get("__name__") != _SWITCHES]


def _frames_up(frame: FrameType | None) -> list[tuple[FrameType, int]]:
    """Return a frame and those that called it, outermost first."""
    frames = []
    while frame is not None:
        frames.append((frame, frame.f_lineno))
        frame = frame.f_back
    frames.reverse()
    return frames


def is_waiting(frame: FrameType) -> bool:
    """Tell whether the innermost frame is the loop's own wait for I/O."""
    inner: FrameType | None = frame
    while inner is not None and str(inner.f_globals.get("__name__")).startswith(_HOOKS):
        inner = inner.f_back  # what stands in for a blocking call says nothing of who makes it
    frame = inner or frame
    names = ("select", "wait", "_run_once", "get_events", "get_next_task")
    return frame.f_code.co_name in names and (
        "selectors" in frame.f_code.co_filename
        or "_quiet_loop" in frame.f_code.co_filename
        or "asyncio" in frame.f_code.co_filename
        or "trio" in frame.f_code.co_filename
    )


def _frame_and_next(steps: Any) -> tuple[FrameType | None, Any]:
    if inspect.iscoroutine(steps):
        return steps.cr_frame, steps.cr_await
    if inspect.isgenerator(steps):
        return steps.gi_frame, steps.gi_yieldfrom
    if inspect.isasyncgen(steps):
        return steps.ag_frame, steps.ag_await
    # What drives an `async for` or `async with` of an async generator hides it.
    return None, None


def _format(frames: list[tuple[FrameType, int]]) -> str:
    if not frames:
        return "  (no Python frame to show)"
    shown = traceback.StackSummary.extract(iter(frames[-_FRAMES:]), lookup_lines=True)
    return "".join(shown.format()).rstrip("\n")
