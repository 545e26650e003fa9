// Before the first paint: the theme that was chosen here, if one was. (No module, which would come later.)
"use strict";
try {
  const chosen = localStorage.getItem("shardnet-theme");
  if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
} catch { /* storage is not allowed: the system's theme it is */ }
