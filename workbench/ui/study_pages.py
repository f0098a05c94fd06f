"""The pages on which raters vote, under /vote, beside gradio and knowing nothing of it: one HTML file, one script and a
handful of calls. What a page is told of a pair is made in feedback/study_media.py; it names nobody.

    POST /vote/STUDY/state    what the study asks, who votes, how far they are; {"enter": "name" | "login"} to strangers
    POST /vote/STUDY/enter    {name} -> a cookie, where a study is open; elsewhere POST …/login {name, password}
    POST /vote/STUDY/leave    ends it: whoever comes next is another rater
    POST /vote/STUDY/next     {have: battles} -> a pair, or {end: why there is none}
    POST /vote/STUDY/vote     {battle, choices: {criterion: choice}, key, reason, dwell} -> {done, ...}
    POST /vote/STUDY/undo     {battle, key} -> the pair again                 POST /vote/STUDY/skip {battle}
    GET  /vote/media/ADDRESS  a picture, a clip or a sound of one's own pair
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route

from workbench.core.errors import BadInput
from workbench.ui.context import AppContext
from workbench.ui.limits import INPUTS
from workbench.ui.role_gate import COOKIE, STUDIES
from workbench.ui.upload_owners import read_login
from workbench.ui.users import Users
from workbench.ui.widgets.html import TEMPLATES

if TYPE_CHECKING:  # torch comes with these
    from workbench.feedback.raters import Rater
    from workbench.feedback.studies import Study

MAX_BODY = 64_000  # bytes of a call
SESSION = 90 * 86_400  # seconds that a rater is known
MAX_TRIES = 16  # pairs whose files are gone that one call passes over
STATIC = {"study.css": "text/css", "study.js": "text/javascript"}
CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; media-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
HEADERS = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff",
           "Content-Security-Policy": CONTENT_POLICY}  # fmt: skip
NO_STUDY = "There is no study at this address."
TROUBLE = "Something went wrong here. Your votes are kept; please tell whoever asked you to vote."


class Answered(Exception):
    """Raised to end a call with this answer."""

    def __init__(self, status: int, **content: Any):
        self.response = JSONResponse(content, status, HEADERS)


def add_studies(context: AppContext, users: Users, inner: Callable) -> Callable:
    """A lifespan that puts the pages of studies before all routes of an app, around another lifespan."""

    @asynccontextmanager
    async def lifespan(main: Starlette) -> AsyncIterator[None]:
        main.router.routes.insert(0, Mount(STUDIES, StudyPages(context, users, main).build()))
        async with inner(main):
            yield

    return lifespan


class StudyPages:
    """The calls of all studies of one app. `main`: the app beside which they are, whose logins count here too."""

    def __init__(self, context: AppContext, users: Users, main: Starlette):
        self.context, self.users, self.main = context, users, main
        self._media: Any = None

    def build(self) -> Starlette:
        calls = {
            name: getattr(self, name) for name in ("state", "enter", "login", "leave", "next", "vote", "undo", "skip")
        }
        return Starlette(
            routes=[
                Route("/", self.page),
                Route("/static/{file}", self.static),
                Route("/media/{address}", self.media),
                Route("/studies", self._call(self.studies), methods=["POST"]),
                *(Route(f"/{{study}}/{name}", self._call(call), methods=["POST"]) for name, call in calls.items()),
                Route("/{study}", self.page),
            ]
        )

    @property
    def desk(self) -> Any:
        from workbench.feedback.study_media import StudyMedia  # and torch with it: not before the app stands

        if self._media is None:
            self._media = StudyMedia(self.context.runs, self.context.temp / "studies")
        return self._media

    # What is the same for everybody

    def page(self, request: Request) -> Response:
        html = (TEMPLATES / "study.html").read_text(encoding="utf-8")
        return Response(html, media_type="text/html", headers=HEADERS)

    def static(self, request: Request) -> Response:
        name = request.path_params["file"]
        if name not in STATIC:
            return PlainTextResponse("There is nothing here.\n", 404)
        headers = HEADERS | {"Cache-Control": "no-cache"}
        return Response((TEMPLATES / name).read_text(encoding="utf-8"), media_type=STATIC[name], headers=headers)

    # What a rater gets

    def media(self, request: Request) -> Response:
        owners = [v for k, v in request.cookies.items() if k.startswith(COOKIE)] + [self._login(request) or ""]
        for owner in filter(None, owners):
            if file := self.desk.find_file(request.path_params["address"], owner):
                headers = HEADERS | {"Cache-Control": "private, max-age=3600"}
                return FileResponse(file[0], media_type=file[1], headers=headers)
        return PlainTextResponse("This is no longer here; load the page again.\n", 404, HEADERS)

    def studies(self, request: Request, body: dict) -> dict:
        """The open studies of somebody who is logged in."""
        from workbench.feedback.studies import list_studies

        if self._login(request) is None:
            raise Answered(401, enter="login")
        return {"studies": [s.name for s in list_studies(self.context.runs) if not s.closed]}

    def state(self, request: Request, body: dict) -> dict:
        study = self._study(request)
        title = {"study": study.name, "instructions": study.instructions}
        found_rater = self._rater(request, study)
        if found_rater is None:
            raise Answered(401, enter="name" if self._takes_names(study) else "login", **title)
        from workbench.feedback import study_results

        rater, _ = found_rater
        vote_count, total = study_results.measure_progress(self.context.runs, study, rater.id)
        about = {"criteria": study.criteria, "reveal": study.reveal, "closed": bool(study.closed)}
        return title | about | {"rater": rater.name, "done": vote_count, "target": total}

    def enter(self, request: Request, body: dict) -> Response:
        """Vote under a name, where a study is open to whoever has its link."""
        from workbench.feedback import raters

        study = self._study(request)
        if not self._takes_names(study):
            raise Answered(401, enter="login")
        return self._open_session(
            request, study, raters.enter_with_name(self.context.runs, study, body.get("name", ""))
        )

    def login(self, request: Request, body: dict) -> Response:
        from workbench.feedback import raters

        study, name, password = self._study(request), body.get("name"), body.get("password")
        if not (isinstance(name, str) and isinstance(password, str) and self.users.check_password(name, password)):
            raise Answered(400, error="This name and this password don't belong together.")
        return self._open_session(request, study, raters.enter_with_login(self.context.runs, study, name))

    def _open_session(self, request: Request, study: Study, token: str) -> Response:
        response = JSONResponse({"entered": True}, headers=HEADERS)
        secure = request.url.scheme == "https"
        response.set_cookie(f"{COOKIE}-{study.number}", token, SESSION, httponly=True, samesite="lax", secure=secure)
        return response

    def leave(self, request: Request, body: dict) -> Response:
        """End the session: whoever comes next is another rater."""
        from workbench.feedback import raters

        response = JSONResponse({"left": True}, headers=HEADERS)
        for name, token in request.cookies.items():
            if name.startswith(COOKIE):
                raters.end_session(self.context.runs, token)
                response.delete_cookie(name)
            elif name.startswith("access-token"):  # gradio's
                getattr(self.main, "tokens", {}).pop(token, None)
                response.delete_cookie(name)
        return response

    def next(self, request: Request, body: dict) -> dict:
        study, (rater, owner) = self._study(request), self._need_rater(request)
        have = body.get("have", [])
        if not isinstance(have, list) or not all(isinstance(battle, str) for battle in have):
            raise Answered(400, error="have: give a list of battles")
        from workbench.feedback import study_battles

        for _ in range(MAX_TRIES):
            battle, vote_count = study_battles.ask_battle(self.context.runs, study.name, rater.id, have)
            if isinstance(battle, str):
                return self._end(study, rater, battle, vote_count)
            if view := self.desk.show(battle, owner):
                return self._with_labels(view) | {"done": vote_count}
            study_battles.skip_battle(self.context.runs, study.name, rater.id, battle.id)
        return self._end(study, rater, "complete", vote_count)

    def vote(self, request: Request, body: dict) -> dict:
        from workbench.feedback import study_battles

        study, (rater, _) = self._study(request), self._need_rater(request)
        ballot: dict[str, Any] = {key: body.get(key) for key in ("battle", "choices", "key")}
        ballot |= {key: body[key] for key in ("reason", "dwell") if key in body}
        return study_battles.record_ballot(self.context.runs, study.name, rater.id, **ballot)

    def undo(self, request: Request, body: dict) -> dict:
        from workbench.feedback import study_battles

        study, (rater, owner) = self._study(request), self._need_rater(request)
        battle = study_battles.take_back(
            self.context.runs, study.name, rater.id, body.get("battle", ""), body.get("key", "")
        )
        if not (view := self.desk.show(battle, owner)):
            raise Answered(400, error="This pair can no longer be shown; its vote was taken back.")
        return self._with_labels(view)

    def skip(self, request: Request, body: dict) -> dict:
        from workbench.feedback import study_battles

        study, (rater, _) = self._study(request), self._need_rater(request)
        study_battles.skip_battle(self.context.runs, study.name, rater.id, body.get("battle", ""))
        return {"skipped": True}

    def _end(self, study: Study, rater: Rater, why: str, vote_count: int) -> dict:
        from workbench.feedback import study_battles, study_results

        answer: dict[str, Any] = {"end": why, "message": study_battles.END[why], "done": vote_count}
        if study.reveal == "end" and why != "wait":
            answer["summary"] = study_results.summarise_rater(self.context.runs, study, rater.id)
        return answer

    def _with_labels(self, view: dict) -> dict:
        for entry in view["inputs"]:
            entry["label"] = INPUTS[entry.pop("name")][0]
        return view

    # Who asks, and for what

    def _takes_names(self, study: Study) -> bool:
        """Whether one votes under any name: the study is open, or the app is for this machine alone."""
        return study.is_open or not self.users.admins

    def _login(self, request: Request) -> str | None:
        login = read_login({**request.scope, "app": self.main}) if self.users.admins else None
        return login if self.users.role_of(login) else None

    def _study(self, request: Request) -> Study:
        from workbench.feedback import studies

        try:
            return studies.find_study(self.context.runs, request.path_params["study"])
        except BadInput:  # whose sentence names other studies
            raise Answered(404, error=NO_STUDY) from None

    def _rater(self, request: Request, study: Study) -> tuple[Rater, str] | None:
        """(who votes, to whom media are told); None for a stranger."""
        from workbench.feedback import raters

        token = request.cookies.get(f"{COOKIE}-{study.number}", "")
        session = raters.find_rater(self.context.runs, study, token) if token else None
        if session:
            rater, login_name = session
            if self.users.role_of(login_name) if login_name else self._takes_names(study):
                return rater, token
        login = self._login(request)
        return (raters.rater_of_login(self.context.runs, study, login), login) if login else None

    def _need_rater(self, request: Request) -> tuple[Rater, str]:
        study = self._study(request)
        if (rater_and_owner := self._rater(request, study)) is None:
            raise Answered(401, enter="name" if self._takes_names(study) else "login")
        return rater_and_owner

    def _call(self, work: Callable[[Request, dict], dict | Response]) -> Callable:
        async def answer(request: Request) -> Response:
            from anyio.to_thread import run_sync

            try:
                body = await read_call(request)
            except Answered as problem:
                return problem.response
            return await run_sync(_answer, work, request, body)

        return answer


def _answer(work: Callable[[Request, dict], dict | Response], request: Request, body: dict) -> Response:
    """The answer to a call. What went wrong is told in a sentence that names nobody; all of it is on the console."""
    from workbench.feedback.votes import Refusal

    try:
        content = work(request, body)
    except Answered as problem:
        return problem.response
    except Refusal as refusal:
        return JSONResponse({"error": str(refusal)}, 400, HEADERS)
    except BadInput as error:
        print(f"{request.url.path}: {error}", file=sys.stderr)
        return JSONResponse({"error": TROUBLE}, 503, HEADERS)
    except Exception:
        traceback.print_exc()
        return JSONResponse({"error": TROUBLE}, 500, HEADERS)
    return content if isinstance(content, Response) else JSONResponse(content, headers=HEADERS)


async def read_call(request: Request) -> dict:
    """The JSON object that a call has sent. Only JSON: what a form of another site could send is refused."""
    if not request.headers.get("content-type", "").startswith("application/json"):
        raise Answered(415, error="send JSON")
    data = b""
    async for part in request.stream():
        data += part
        if len(data) > MAX_BODY:
            raise Answered(413, error=f"at most {MAX_BODY:,} bytes, please")
    try:
        body = json.loads(data or b"{}")
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise Answered(400, error="send a JSON object")
    return body
