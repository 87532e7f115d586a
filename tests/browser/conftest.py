"""One Chromium for all browser tests; for each site (a server with a frontend) one page, used with both renderers.

The newest frontend is on the thin server, which needs no ComfyUI, and for what needs one on a real server as well.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from server import Server, fresh_folder, running_server

from lab.cores import HOW_TO, Core, find_cores, newest

from .thin_server import running_thin_server

OLDEST_CORE = [0, 10]  # the first to fold `advanced` inputs, and to let a page change its renderer
CANVAS, NODES_2 = "canvas", "Nodes 2.0"
THIN, OWN, NEWEST = "thin server", "ComfyUI, own frontend", "ComfyUI, newest frontend"
NO_CHROMIUM = "no Chromium found: set CHROMIUM_PATH, or install Debian's chromium"
NO_FRONTEND = "the package comfyui-frontend-package is not installed: pip install -c constraints.txt -e '.[test]'"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Workflow.Persist": False,
    "Comfy.EnableTooltips": False,
    "Comfy.InstalledVersion": "1.0.0",
}


def find_chromium() -> str | None:
    """CHROMIUM_PATH, else the first browser of that family on PATH, else Debian's."""
    names = [
        os.environ.get("CHROMIUM_PATH", ""),
        "chromium",
        "chromium-browser",
        "google-chrome",
        "google-chrome-stable",
        "/usr/bin/chromium",
    ]
    return next((found for name in names if name and (found := shutil.which(name))), None)


def newest_frontend() -> Path | None:
    """Static files of the frontend package in this environment."""
    found = importlib.util.find_spec("comfyui_frontend_package")
    return Path(found.origin).parent / "static" if found and found.origin else None


def newest_core() -> Core | None:
    cores = [core for core in find_cores() if [int(part) for part in core.version.split(".")] >= OLDEST_CORE]
    return newest(cores) if cores else None


@dataclass(frozen=True)
class Site:
    name: str
    url: str
    server: Server | None = None  # None: the thin server, which runs nothing


def reason_to_skip(site: str) -> str | None:
    if importlib.util.find_spec("playwright") is None:
        return "the package playwright is not installed: pip install -c constraints.txt -e '.[test]'"
    if find_chromium() is None:
        return NO_CHROMIUM
    if site != OWN and newest_frontend() is None:
        return NO_FRONTEND
    if site != THIN and newest_core() is None:
        return HOW_TO + f"; the browser tests need {'.'.join(map(str, OLDEST_CORE))} or newer"
    return None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "site" in metafunc.fixturenames:
        runs = metafunc.definition.get_closest_marker("runs_workflows")
        params = []
        newest_alone = metafunc.definition.get_closest_marker("newest_frontend") is not None
        for site in (NEWEST if runs else THIN, OWN)[: 1 if newest_alone else 2]:
            reason = reason_to_skip(site)
            params.append(pytest.param(site, marks=[pytest.mark.skip(reason=reason)] if reason else [], id=site))
        metafunc.parametrize("site", params, indirect=True, scope="package")
    if "renderer" in metafunc.fixturenames:
        chosen = metafunc.definition.get_closest_marker("renderers")
        metafunc.parametrize("renderer", chosen.args if chosen else [CANVAS, NODES_2], indirect=True, scope="package")


@pytest.fixture(scope="package")
def sites(
    tmp_path_factory: pytest.TempPathFactory, server_of: Callable[[Core], Server], request: pytest.FixtureRequest
) -> Iterator[Callable[[str], Site]]:
    """Starts every server that the chosen tests need at once, in threads, so that one starts while tests run on another."""
    wanted = {
        item.callspec.params["site"] for item in request.session.items if "site" in getattr(getattr(item, "callspec", None), "params", {})
    }
    with ExitStack() as running, ThreadPoolExecutor() as pool:

        def start(name: str) -> Site:
            if name == THIN:
                return Site(name, running.enter_context(running_thin_server(newest_frontend())))
            if name == OWN:
                server = server_of(newest_core())
            else:
                base = fresh_folder(tmp_path_factory.mktemp("browser"))
                server = running.enter_context(running_server(newest_core(), base, "--front-end-root", str(newest_frontend())))
            return Site(name, server.url, server)

        started = {name: pool.submit(start, name) for name in (THIN, OWN, NEWEST) if name in wanted and reason_to_skip(name) is None}
        yield lambda name: started[name].result()


@pytest.fixture(scope="package")
def site(sites: Callable[[str], Site], request: pytest.FixtureRequest) -> Site:
    return sites(request.param)


@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS)
        yield running
        running.close()


@pytest.fixture(scope="package")
def opened(browser: Any, site: Site) -> Iterator[Any]:
    """The frontend's page on this site, with an empty graph."""
    from .frontend import Frontend

    context = browser.new_context(viewport={"width": 1600, "height": 1000}, has_touch=True)
    context.request.post(site.url + "/settings", data=SETTINGS)
    yield Frontend(context, site.url)
    context.close()


@pytest.fixture(scope="package")
def renderer(opened: Any, request: pytest.FixtureRequest) -> str:
    opened.set("Comfy.VueNodes.Enabled", request.param == NODES_2)
    opened.open()  # anew, for Nodes 2.0 keeps to the sizes of earlier nodes with the same numbers
    return request.param


@pytest.fixture
def frontend(opened: Any, renderer: str) -> Any:
    opened.clear()
    opened.complaints.clear()
    return opened
