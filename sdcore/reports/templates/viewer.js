// Keys for what the mouse can do: no state of its own, every page works without it.
const rows = [...document.querySelectorAll("[data-row]")];
const move = (by) => {
  const at = rows.indexOf(document.activeElement);
  rows[at < 0 ? 0 : Math.min(Math.max(at + by, 0), rows.length - 1)]?.focus();
};
const follow = (rel) => document.querySelector(`a[rel="${rel}"]`)?.click();
const keys = {
  j: () => move(1),
  k: () => move(-1),
  u: () => follow("up"),
  "[": () => follow("prev"),
  "]": () => follow("next"),
  "/": () => document.querySelector(".filters :is(input, select)")?.focus(),
};
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") return document.activeElement.blur();
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select")) return;
  if (!(event.key in keys)) return;
  event.preventDefault();
  keys[event.key]();
});
// An unused filter does not belong in the address.
document.querySelector(".filters")?.addEventListener("formdata", (event) => {
  for (const [name, value] of [...event.formData]) if (!value) event.formData.delete(name);
});
