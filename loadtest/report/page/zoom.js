// Wide drawings can be zoomed into along time: buttons, Ctrl + wheel, and dragging. Without this script all is there.
for (const drawing of document.querySelectorAll("figure.wide .drawing")) {
  const svg = drawing.querySelector("svg");
  const [left, top, width, height] = svg.getAttribute("viewBox").split(/[ ,]+/).map(Number);
  let view = [left, top, width, height];
  const show = (x, y, scale) => {
    const s = Math.min(1, Math.max(1 / 64, scale));
    view = [
      Math.min(left + width * (1 - s), Math.max(left, x)),
      Math.min(top + height * (1 - s), Math.max(top, y)),
      width * s,
      height * s,
    ];
    svg.setAttribute("viewBox", view.join(" "));
    drawing.classList.toggle("zoomed", s < 1);
  };
  const zoom = (factor, px = 0.5, py = 0.5) => {
    const scale = Math.min(1, Math.max(1 / 64, (view[2] / width) * factor));
    show(view[0] + px * (view[2] - width * scale), view[1] + py * (view[3] - height * scale), scale);
  };
  const tools = document.createElement("div");
  tools.className = "tools";
  const actions = [["+", "zoom in", () => zoom(0.5)], ["−", "zoom out", () => zoom(2)],
    ["←", "earlier", () => show(view[0] - view[2] / 4, view[1], view[2] / width)],
    ["→", "later", () => show(view[0] + view[2] / 4, view[1], view[2] / width)],
    ["⟲", "show all", () => show(left, top, 1)]];
  for (const [sign, name, act] of actions) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = sign;
    button.title = name;
    button.setAttribute("aria-label", name);
    button.addEventListener("click", act);
    tools.append(button);
  }
  drawing.before(tools);
  const place = (event) => {
    const box = svg.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  };
  drawing.addEventListener("wheel", (event) => {
    if (!event.ctrlKey) return;
    event.preventDefault();
    zoom(event.deltaY < 0 ? 0.8 : 1.25, ...place(event));
  }, { passive: false });
  let held = null;
  drawing.addEventListener("pointerdown", (event) => {
    if (view[2] === width) return;
    held = [event.clientX, event.clientY, view[0], view[1]];
    drawing.setPointerCapture(event.pointerId);
  });
  drawing.addEventListener("pointermove", (event) => {
    if (!held) return;
    const box = svg.getBoundingClientRect();
    show(held[2] - ((event.clientX - held[0]) / box.width) * view[2],
      held[3] - ((event.clientY - held[1]) / box.height) * view[3], view[2] / width);
  });
  for (const end of ["pointerup", "pointercancel"]) drawing.addEventListener(end, () => { held = null; });
}
window.addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});
