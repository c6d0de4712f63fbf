// Before the first paint: a theme that the reader chose, and room for what scripts will draw.
document.documentElement.classList.add("js");
try {
  const theme = localStorage.getItem("raysift-theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch { /* a browser that stores nothing for files */ }
