from __future__ import annotations
def test_start(frontend, renderer):
    frontend.page.screenshot(path=f"/tmp/i6b-x/t-{renderer}.png")
    assert not frontend.complaints
    print(frontend.page.evaluate("app.graph.nodes.length"))
