"""The rules: what is looked for, how bad it is, and what `--explain` says of it."""

from __future__ import annotations

from typing import Literal

import attrs

Severity = Literal["error", "warning", "note"]


@attrs.frozen(kw_only=True)
class Rule:
    """One kind of shared state.

    Attributes:
        id: What it is called in options, baselines and comments; never given to another rule.
        name: What it is called for people, like `mutable-global`.
        summary: What it finds, in one sentence.
        severity: `error` if requests see each other's data when it happens, `warning` if they may.
        example: Code that it finds.
        danger: What goes wrong.
        remedy: What to write instead, and which isolation makes it harmless.
    """

    id: str
    name: str
    summary: str
    severity: Severity
    example: str
    danger: str
    remedy: str


_ALL: list[Rule] = [
    Rule(
        id="SP101",
        name="mutable-global",
        severity="warning",
        summary="A request changes an object that a module holds.",
        example=(
            "CART = []\n\n"
            '@app.post("/cart/{item}")\n'
            "async def add(item: str):\n"
            "    CART.append(item)       # everybody's cart\n"
            "    return CART"
        ),
        danger=(
            "A module exists once in a worker. What one request puts into its list, dict or set "
            "is there for all that run at the same time and after it, and it grows until the "
            "worker ends. Each worker has another one, so the answers depend on who is asked."
        ),
        remedy=(
            "Keep the data of a request in its function, in `request.state` or in a context "
            "variable, and what must outlive it in a database or cache. "
            'With sandboxpool.wrap(app, isolation="module") each sandbox has modules of its own '
            "that are restored after the request."
        ),
    ),
    Rule(
        id="SP102",
        name="global-write",
        severity="error",
        summary="A request assigns to a global of a module.",
        example=(
            "current_user = None\n\n"
            '@app.get("/me")\n'
            "async def me(user: str):\n"
            "    global current_user\n"
            "    current_user = user\n"
            "    await audit()           # another request runs here\n"
            "    return current_user     # and this is its user"
        ),
        danger=(
            "The second request overwrites what the first one needs after its next `await`. "
            "It never happens to one user alone, so no test shows it."
        ),
        remedy=(
            "Pass it as an argument, or use contextvars.ContextVar, which is private to the task "
            'of a request. With sandboxpool.wrap(app, isolation="module") the global is private '
            "to a sandbox."
        ),
    ),
    Rule(
        id="SP103",
        name="class-state",
        severity="error",
        summary="A request changes an attribute that all instances of a class share.",
        example=(
            "class Cart:\n"
            "    items = []                  # one list for all carts\n\n"
            "    def add(self, item):\n"
            "        self.items.append(item)"
        ),
        danger=(
            "What is written in the body of a class exists once. Each new instance looks private "
            "and is not."
        ),
        remedy=(
            "Create it in `__init__`: self.items = [], or with field(default_factory=list) in a "
            'dataclass. With sandboxpool.wrap(app, isolation="module") the class is private to a '
            "sandbox."
        ),
    ),
    Rule(
        id="SP104",
        name="mutable-default",
        severity="error",
        summary="A function changes the default of its parameter.",
        example=("def add(item, cart=[]):\n    cart.append(item)\n    return cart"),
        danger=(
            "The default is made once, when the function is defined. Every call without that "
            "argument, of whichever request, gets the same object with all that earlier ones did."
        ),
        remedy=(
            "Write cart=None and `cart = [] if cart is None else cart`. "
            'With sandboxpool.wrap(app, isolation="module") the function, and so its default, is '
            "private to a sandbox."
        ),
    ),
    Rule(
        id="SP105",
        name="app-state",
        severity="error",
        summary="A request sets something on the app or on its state.",
        example=(
            '@app.get("/me")\n'
            "async def me(request: Request, user: str):\n"
            "    request.app.state.user = user\n"
            "    await audit()\n"
            "    return request.app.state.user"
        ),
        danger=(
            "There is one app in a worker, and `app.state` belongs to it, not to the request. "
            "Two requests at once read each other's values."
        ),
        remedy=(
            "Use `request.state`, which is made for each request. With sandboxpool.wrap(app), "
            "every isolation, each request has an app and an `app.state` of its own."
        ),
    ),
    Rule(
        id="SP106",
        name="middleware-state",
        severity="error",
        summary="A middleware keeps data of a request on itself.",
        example=(
            "class Tenant(BaseHTTPMiddleware):\n"
            "    async def dispatch(self, request, call_next):\n"
            '        self.tenant = request.headers["x-tenant"]\n'
            "        response = await call_next(request)\n"
            '        response.headers["x-tenant"] = self.tenant\n'
            "        return response"
        ),
        danger=(
            "A middleware is made once, when the app starts, and every request runs through that "
            "one object."
        ),
        remedy=(
            "Use a local variable, `request.state` or the scope. With sandboxpool.wrap(app), every "
            "isolation, each sandbox has middleware of its own."
        ),
    ),
    Rule(
        id="SP107",
        name="shared-object",
        severity="warning",
        summary="A request changes an object that exists once for all requests.",
        example=(
            "class Session:\n"
            "    def login(self, user):\n"
            "        self.user = user\n\n"
            "session = Session()             # one for the whole worker\n\n"
            '@app.get("/me")\n'
            "async def me(user: str, session: Session = Depends(lambda: session)):\n"
            "    session.login(user)"
        ),
        danger=(
            "An instance that a module or the app holds is shared by all requests, and so is each "
            "attribute that its methods set."
        ),
        remedy=(
            "Make the object for each request: a dependency that returns Session(). "
            'With sandboxpool.wrap(app, isolation="module") objects of your modules are private '
            "to a sandbox."
        ),
    ),
    Rule(
        id="SP108",
        name="closure-state",
        severity="error",
        summary="A request changes a variable of the function around its handler.",
        example=(
            "def create_app():\n"
            "    app = FastAPI()\n"
            "    visits = 0\n\n"
            '    @app.get("/")\n'
            "    async def home():\n"
            "        nonlocal visits\n"
            "        visits += 1\n"
            "        return visits"
        ),
        danger=(
            "The outer function ran once, when the app was made. Its variables live as long as the "
            "handler does, and all requests share them."
        ),
        remedy=(
            "Keep it in the handler, or in a store that is meant to be shared. With "
            'sandboxpool.wrap(create_app, factory=True) or isolation="module" each sandbox has '
            "variables of its own."
        ),
    ),
    Rule(
        id="SP109",
        name="function-attribute",
        severity="warning",
        summary="A request sets an attribute of a function.",
        example=(
            '@app.get("/")\n'
            "async def home(user: str):\n"
            "    home.last_user = user\n"
            "    return home.last_user"
        ),
        danger="A function is one object for the whole worker; its attributes are globals.",
        remedy=(
            "Use a local variable or a context variable. With "
            'sandboxpool.wrap(app, isolation="module") functions are private to a sandbox.'
        ),
    ),
    Rule(
        id="SP110",
        name="shared-cache",
        severity="warning",
        summary="A cache keeps objects of a request, or what it returns is changed.",
        example=(
            "class Basket:\n"
            "    @lru_cache\n"
            "    def total(self):            # keeps each basket alive, for ever\n"
            "        return sum(self.prices)"
        ),
        danger=(
            "`functools.lru_cache` and `cache` keep arguments and results for the life of the "
            "worker. On a method or with a request as argument they hold what should be gone, and "
            "a result that is changed is changed for everybody who gets it from the cache."
        ),
        remedy=(
            "Cache by plain values (ids, strings) and return what nobody changes; use "
            "`functools.cached_property` for what belongs to one object. With "
            'sandboxpool.wrap(app, isolation="module") caches are private to a sandbox.'
        ),
    ),
    Rule(
        id="SP111",
        name="context-default",
        severity="error",
        summary="A request changes the default of a context variable.",
        example=(
            'user = ContextVar("user", default={})\n\n'
            "def login(name):\n"
            '    user.get()["name"] = name   # the one default, not the request\'s value'
        ),
        danger=(
            "A context variable is private to a task, but its default is one object, made once. "
            "Who changes it without `set()` changes it for everybody."
        ),
        remedy=(
            "Give it no default, or an immutable one, and call user.set({}) when a request begins. "
            'With sandboxpool.wrap(app, isolation="module") the variable and its default are '
            "private to a sandbox."
        ),
    ),
    Rule(
        id="SP112",
        name="process-state",
        severity="warning",
        summary="A request changes something of the whole process.",
        example=(
            '@app.get("/report")\ndef report(tz: str):\n    os.environ["TZ"] = tz\n    time.tzset()'
        ),
        danger=(
            "Environment variables, the current folder, the locale, the seed of `random` and the "
            "like exist once in a process, for all of its requests, libraries and threads."
        ),
        remedy=(
            "Pass the value to what needs it: env= and cwd= of a subprocess, random.Random(seed), "
            "zoneinfo.ZoneInfo(tz). No isolation inside a process can make it private; "
            'sandboxpool.wrap(app, leaks="retire") notices it.'
        ),
    ),
    Rule(
        id="SP201",
        name="answer-differs",
        severity="error",
        summary="A request got another answer while others ran than it got alone.",
        example=(
            "GET /me?user=ann        alone:           ann\n"
            "GET /me?user=ann        with user=bob:   bob"
        ),
        danger=(
            "The app was driven with the same requests one by one and then at once. What differs "
            "came from another request."
        ),
        remedy=(
            "Look at the state that is named next to it. If wrapped answers were right, "
            "sandboxpool.wrap(app) with that isolation is the remedy without changing the code."
        ),
    ),
    Rule(
        id="SP202",
        name="state-left-behind",
        severity="warning",
        summary="State of the app was different after a request.",
        example='shop.state.current_user: None -> "ann"   after GET /me?user=ann',
        danger=(
            "What a request leaves behind is what the next one finds. It need not change an "
            "answer today."
        ),
        remedy=(
            "See what `--explain` says of the rule for the place that wrote it. If it is a cache "
            "that may fill, name it with --ignore or in the baseline."
        ),
    ),
]

# What `wrap()` with an isolation makes private, as the table in docs/isolation.md has it.
_PRIVATE_IN: dict[str, tuple[str, ...]] = {
    "SP105": ("clone", "factory", "module"),
    "SP106": ("clone", "factory", "module"),
    "SP108": ("factory", "module"),
    "SP112": (),
}


def private_in(rule: str) -> tuple[str, ...]:
    """Return the isolations that make what breaks a rule private to a sandbox."""
    return _PRIVATE_IN.get(rule, ("module",))


RULES: dict[str, Rule] = {rule.id: rule for rule in _ALL}
"""Every rule, by its id."""


def find_rule(name: str) -> Rule | None:
    """Return the rule of that id or name, in capitals or not."""
    wanted = name.strip().lower()
    return next((one for one in _ALL if wanted in (one.id.lower(), one.name)), None)


def rule_names() -> list[str]:
    """Return everything that a rule can be called."""
    return [name for rule in _ALL for name in (rule.id, rule.name)]
