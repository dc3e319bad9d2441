"""ComfyUI's page in Chinese: what a node refuses is said in Chinese, by the host's dialog and on the node."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from browser import Page, chromium, launched, opened
from hosting import Host, checkout

pytestmark = [
    pytest.mark.browser,
    pytest.mark.host,
    pytest.mark.skipif(
        checkout() is None or chromium() is None, reason="NO COMFYUI OR NO BROWSER: CHINESE WAS NOT READ"
    ),
]
REFUSED = "界限从最粗到最细的尺度须递减或相等，收到 [10, 40, 20, 10]"


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with Host() as host, launched() as browser:
        with opened(browser, host, nodes2=True, language="zh") as page:
            yield page
        host.post("/api/settings", {"Comfy.Locale": "en"})


def test_an_error_is_said_in_chinese_by_the_host_and_on_the_node(page: Page) -> None:
    page.build()
    page.set_widget("preset", "custom bounds")
    page.set_widget("values", "10, 40, 20, 10")
    with pytest.raises(RuntimeError, match=re.escape(REFUSED)):
        page.run()
    page.wait(1500)
    page.page.get_by_role("button", name="查看详情").first.click()
    page.wait(1500)
    node = page.page.locator(".moss-inspector").all_inner_texts()
    everything = page.page.locator("body").inner_text()
    assert any(REFUSED in text for text in node)
    assert everything.count(REFUSED) > sum(text.count(REFUSED) for text in node)  # the host's own words
