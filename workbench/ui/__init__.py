"""The app: tabs/ has one file a tab, whose `build_tab(page, context)` draws it inside the page's blocks and wires its
handlers; widgets/ has what tabs show, as HTML; templates/ their HTML, CSS and JavaScript. Tabs import widgets, widgets
import no tab."""
