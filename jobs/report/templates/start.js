(async () => {
  const views = [];
  for (const told of document.querySelectorAll("script[data-chart]")) {
    const item = JSON.parse(told.textContent);
    const [view] = Object.values(await Bokeh.embed.embed_item(item));
    views.push(view ?? item.root_id);
  }
  document.documentElement.dataset.drawn = views.length;
  const repaint = () => {
    for (const document of Bokeh.documents) {
      for (const root of document.roots()) {
        Bokeh.index.find_one(root)?.invalidate_layout();
      }
    }
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
})();
