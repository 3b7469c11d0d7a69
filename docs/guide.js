// Copies blocks of code, and lets the keyboard scroll tables that are wider than the page.
(() => {
  "use strict";

  const addCopyButton = (block) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "copy";
    button.textContent = "Copy";
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(block.querySelector("code").textContent.trimEnd());
      button.textContent = "Copied";
      setTimeout(() => (button.textContent = "Copy"), 2000);
    });
    block.append(button);
  };

  const makeScrollable = () => {
    for (const frame of document.querySelectorAll(".md-typeset__scrollwrap, pre > code")) {
      if (frame.scrollWidth > frame.clientWidth) frame.tabIndex = 0;
      else frame.removeAttribute("tabindex");
    }
  };

  // Browsers let only pages of this machine, or over https, write to the clipboard.
  if (navigator.clipboard) document.querySelectorAll("div.highlight").forEach(addCopyButton);
  window.addEventListener("load", makeScrollable);
  window.addEventListener("resize", makeScrollable);
})();
