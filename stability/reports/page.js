"use strict";
(() => {
  const table = document.getElementById("results");
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const sort = (place, direction) => {
    const numeric = heads[place].dataset.numeric === "1";
    const value = (row) => row.cells[place].dataset.value;
    const compare = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      if (!numeric) return direction * x.localeCompare(y);
      const [u, v] = [Number(x), Number(y)];
      return direction * ((u > v) - (u < v));
    };
    body.append(...[...body.rows].sort(compare));
    heads.forEach((head, other) => {
      if (other === place) head.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
      else head.removeAttribute("aria-sort");
    });
  };
  heads.forEach((head, place) => {
    head.querySelector("button").addEventListener("click", () => {
      sort(place, head.getAttribute("aria-sort") === "ascending" ? -1 : 1);
    });
  });
})();
