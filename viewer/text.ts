// Every sentence that the page shows, in one table. Each row has all languages, in this order.

export const languages = ["en", "de", "fr", "es"] as const;
export type Language = (typeof languages)[number];

type Row = readonly [en: string, de: string, fr: string, es: string];

const table = {
  "bar.home": ["Home", "Startseite", "Accueil", "Inicio"],
  "bar.clipboard": ["Clipboard", "Zwischenablage", "Presse-papiers", "Portapapeles"],
  "bar.keys": ["Keys", "Tasten", "Touches", "Teclas"],
  "bar.display": ["Display", "Anzeige", "Affichage", "Pantalla"],
  "bar.files": ["Files", "Dateien", "Fichiers", "Archivos"],
  "bar.share": ["Share", "Teilen", "Partager", "Compartir"],
  "bar.fullscreen": ["Fullscreen", "Vollbild", "Plein écran", "Pantalla completa"],
  "bar.more": ["More", "Mehr", "Plus", "Más"],
  "bar.tuck": ["Hide the bar", "Leiste ausblenden", "Masquer la barre", "Ocultar la barra"],
  "bar.untuck": ["Show the bar", "Leiste einblenden", "Afficher la barre", "Mostrar la barra"],
  "screen.label": ["Remote desktop", "Entfernter Desktop", "Bureau distant", "Escritorio remoto"],
  "screen.leave": [
    "Ctrl+Alt+Shift moves the focus to the bar.",
    "Strg+Alt+Umschalt bringt den Fokus in die Leiste.",
    "Ctrl+Alt+Maj déplace le focus vers la barre.",
    "Ctrl+Alt+Mayús lleva el foco a la barra.",
  ],
  cancel: ["Cancel", "Abbrechen", "Annuler", "Cancelar"],

  "layout.title": [
    "Keyboard layout of the desktop",
    "Tastaturbelegung des Desktops",
    "Disposition du clavier du bureau",
    "Distribución del teclado del escritorio",
  ],
  "layout.no-program": [
    "{program} is missing on the server. Type there: {command}",
    "{program} fehlt auf dem Server. Dort eingeben: {command}",
    "{program} manque sur le serveur. Tapez là-bas : {command}",
    "Falta {program} en el servidor. Escriba allí: {command}",
  ],
  "layout.failed": [
    "The layout could not be set. {error}",
    "Die Belegung ließ sich nicht setzen. {error}",
    "La disposition n’a pas pu être appliquée. {error}",
    "No se pudo cambiar la distribución. {error}",
  ],

  "display.fit": ["Size", "Größe", "Taille", "Tamaño"],
  "display.window": ["Fits the window", "Passt zum Fenster", "Suit la fenêtre", "Sigue la ventana"],
  "display.scale": [
    "Stays, scaled to the window",
    "Bleibt, im Fenster skaliert",
    "Inchangée, mise à l’échelle",
    "Igual, ajustado a la ventana",
  ],
  "display.actual": [
    "Stays, pixel by pixel, scrolls",
    "Bleibt, Pixel für Pixel, rollt",
    "Inchangée, pixel par pixel, défile",
    "Igual, píxel a píxel, con barras",
  ],
  "display.sharp": [
    "Sharp: use all pixels of this screen",
    "Scharf: alle Pixel dieses Bildschirms nutzen",
    "Net : utiliser tous les pixels de cet écran",
    "Nítido: usar todos los píxeles de esta pantalla",
  ],
  "display.quality": ["Picture quality", "Bildqualität", "Qualité d’image", "Calidad de imagen"],
  "quality.auto": ["Automatic", "Automatisch", "Automatique", "Automática"],
  "quality.low": ["Low", "Niedrig", "Basse", "Baja"],
  "quality.medium": ["Medium", "Mittel", "Moyenne", "Media"],
  "quality.high": ["High", "Hoch", "Haute", "Alta"],
  "quality.lossless": ["Lossless", "Verlustfrei", "Sans perte", "Sin pérdida"],

  "clipboard.title": ["Clipboard", "Zwischenablage", "Presse-papiers", "Portapapeles"],
  "clipboard.help": [
    "This is the desktop’s clipboard. What you type or paste here can be pasted there, and what is copied there appears here.",
    "Das ist die Zwischenablage des Desktops. Was hier steht, lässt sich dort einfügen, und was dort kopiert wird, erscheint hier.",
    "Voici le presse-papiers du bureau. Ce que vous tapez ou collez ici peut être collé là-bas, et ce qui y est copié apparaît ici.",
    "Este es el portapapeles del escritorio. Lo que escriba o pegue aquí se puede pegar allí, y lo que se copie allí aparece aquí.",
  ],
  "clipboard.help-in": [
    "What you type or paste here can be pasted on the desktop. Nothing can be copied out of it.",
    "Was hier steht, lässt sich auf dem Desktop einfügen. Aus ihm heraus lässt sich nichts kopieren.",
    "Ce que vous tapez ou collez ici peut être collé sur le bureau. Rien ne peut en être copié.",
    "Lo que escriba o pegue aquí se puede pegar en el escritorio. De él no se puede copiar nada.",
  ],
  "clipboard.help-out": [
    "What is copied on the desktop appears here. Nothing can be pasted into it.",
    "Was auf dem Desktop kopiert wird, erscheint hier. In ihn lässt sich nichts einfügen.",
    "Ce qui est copié sur le bureau apparaît ici. Rien ne peut y être collé.",
    "Lo que se copie en el escritorio aparece aquí. En él no se puede pegar nada.",
  ],
  "clipboard.offer": [
    "Something was copied on the desktop.",
    "Auf dem Desktop wurde etwas kopiert.",
    "Du texte a été copié sur le bureau.",
    "Se ha copiado algo en el escritorio.",
  ],
  "clipboard.copy": [
    "Copy to this computer",
    "Auf diesen Computer kopieren",
    "Copier vers cet ordinateur",
    "Copiar a este equipo",
  ],
  "clipboard.paste": [
    "Paste from this computer",
    "Von diesem Computer einfügen",
    "Coller depuis cet ordinateur",
    "Pegar desde este equipo",
  ],
  "clipboard.copied": ["Copied.", "Kopiert.", "Copié.", "Copiado."],
  "clipboard.pasted": ["Pasted.", "Eingefügt.", "Collé.", "Pegado."],
  "clipboard.copy-failed": [
    "The browser did not allow it: select the text and copy it by hand.",
    "Der Browser hat es nicht erlaubt: Markieren Sie den Text und kopieren Sie ihn von Hand.",
    "Le navigateur ne l’a pas permis : sélectionnez le texte et copiez-le à la main.",
    "El navegador no lo ha permitido: seleccione el texto y cópielo a mano.",
  ],
  "clipboard.paste-failed": [
    "The browser did not allow it: paste the text into the field by hand.",
    "Der Browser hat es nicht erlaubt: Fügen Sie den Text von Hand in das Feld ein.",
    "Le navigateur ne l’a pas permis : collez le texte à la main dans le champ.",
    "El navegador no lo ha permitido: pegue el texto a mano en el campo.",
  ],
  "clipboard.large": [
    "This text is longer than 256 KiB: many VNC servers do not take it.",
    "Dieser Text ist länger als 256 KiB: Viele VNC-Server nehmen ihn nicht an.",
    "Ce texte dépasse 256 Kio : beaucoup de serveurs VNC ne l’acceptent pas.",
    "Este texto pasa de 256 KiB: muchos servidores VNC no lo aceptan.",
  ],
  "clipboard.offline": [
    "It is sent when the connection is back.",
    "Es wird gesendet, sobald die Verbindung wieder steht.",
    "L’envoi se fera au retour de la connexion.",
    "Se enviará cuando vuelva la conexión.",
  ],

  "connecting.title": [
    "Connecting to the desktop",
    "Verbindung zum Desktop wird aufgebaut",
    "Connexion au bureau",
    "Conectando con el escritorio",
  ],
  "connected.title": ["Connected", "Verbunden", "Connecté", "Conectado"],
  "lost.title": [
    "The connection was lost",
    "Die Verbindung ist abgebrochen",
    "La connexion est perdue",
    "Se ha perdido la conexión",
  ],
  "lost.body": [
    "Reconnecting by itself.",
    "Sie wird von selbst wieder aufgebaut.",
    "Elle se rétablit d’elle-même.",
    "Se restablece por sí sola.",
  ],
  "unreachable.title": [
    "The server does not answer",
    "Der Server antwortet nicht",
    "Le serveur ne répond pas",
    "El servidor no responde",
  ],
  "unreachable.body": [
    "The page keeps trying, and goes on by itself.",
    "Die Seite versucht es weiter und macht dann von selbst weiter.",
    "La page continue d’essayer et reprendra d’elle-même.",
    "La página sigue intentándolo y continuará por sí sola.",
  ],
  "offline.title": [
    "You are offline",
    "Sie sind offline",
    "Vous êtes hors ligne",
    "No tiene conexión",
  ],
  "offline.body": [
    "The page goes on by itself when the network is back.",
    "Die Seite macht von selbst weiter, sobald das Netz wieder da ist.",
    "La page reprendra d’elle-même au retour du réseau.",
    "La página continuará por sí sola cuando vuelva la red.",
  ],
  "login.title": [
    "Your log-in has expired",
    "Ihre Anmeldung ist abgelaufen",
    "Votre session a expiré",
    "Su sesión ha caducado",
  ],
  "login.body": [
    "Log in again to go on. The desktop keeps running meanwhile.",
    "Melden Sie sich neu an, um weiterzumachen. Der Desktop läuft währenddessen weiter.",
    "Reconnectez-vous pour continuer. Le bureau reste en marche pendant ce temps.",
    "Vuelva a iniciar sesión para continuar. Mientras tanto, el escritorio sigue en marcha.",
  ],
  "paused.title": ["Paused", "Angehalten", "En pause", "En pausa"],
  "paused.body": [
    "Nobody used the desktop for a while. It keeps running: go on where you left off.",
    "Der Desktop wurde eine Weile nicht benutzt. Er läuft weiter: Machen Sie da weiter, wo Sie waren.",
    "Personne n’a utilisé le bureau depuis un moment. Il reste en marche : reprenez là où vous en étiez.",
    "Nadie ha usado el escritorio durante un rato. Sigue en marcha: continúe donde lo dejó.",
  ],
  "protocol.title": [
    "The connection was refused",
    "Die Verbindung wurde abgelehnt",
    "La connexion a été refusée",
    "La conexión ha sido rechazada",
  ],

  "close.1003": [
    "A text message arrived where only binary ones belong. Something between this browser and the server changes WebSocket messages.",
    "Eine Textnachricht kam an, wo nur binäre hingehören. Etwas zwischen diesem Browser und dem Server verändert WebSocket-Nachrichten.",
    "Un message texte est arrivé là où seuls des messages binaires ont leur place. Quelque chose entre ce navigateur et le serveur modifie les messages WebSocket.",
    "Ha llegado un mensaje de texto donde solo caben binarios. Algo entre este navegador y el servidor modifica los mensajes WebSocket.",
  ],
  "close.1009": [
    "A message was larger than the server accepts. A very long clipboard text can cause that.",
    "Eine Nachricht war größer, als der Server sie annimmt. Ein sehr langer Text in der Zwischenablage kann die Ursache sein.",
    "Un message dépassait la taille que le serveur accepte. Un très long texte dans le presse-papiers peut en être la cause.",
    "Un mensaje superaba el tamaño que acepta el servidor. Un texto muy largo en el portapapeles puede ser la causa.",
  ],
  "close.4400": [
    "The server did not understand what this page sent. Reload the page; if it comes back, this page and the server do not fit together.",
    "Der Server hat nicht verstanden, was diese Seite gesendet hat. Laden Sie die Seite neu; hilft das nicht, passen Seite und Server nicht zusammen.",
    "Le serveur n’a pas compris ce que cette page a envoyé. Rechargez la page ; si cela se reproduit, la page et le serveur ne vont pas ensemble.",
    "El servidor no ha entendido lo que ha enviado esta página. Vuelva a cargarla; si se repite, la página y el servidor no son compatibles.",
  ],
  "close.other": [
    "The server ended the connection with the code {code}.",
    "Der Server hat die Verbindung mit dem Code {code} beendet.",
    "Le serveur a mis fin à la connexion avec le code {code}.",
    "El servidor ha cerrado la conexión con el código {code}.",
  ],

  "state.idle": [
    "The desktop is not running",
    "Der Desktop läuft nicht",
    "Le bureau est à l’arrêt",
    "El escritorio está parado",
  ],
  "state.starting": [
    "The desktop is starting",
    "Der Desktop startet",
    "Le bureau démarre",
    "El escritorio se está iniciando",
  ],
  "state.ready": [
    "The desktop is ready",
    "Der Desktop ist bereit",
    "Le bureau est prêt",
    "El escritorio está listo",
  ],
  "state.ended": [
    "The desktop session has ended",
    "Die Sitzung ist beendet",
    "La session est terminée",
    "La sesión ha terminado",
  ],
  "state.backoff": [
    "The desktop stopped, and starts again by itself",
    "Der Desktop ist ausgefallen und startet von selbst neu",
    "Le bureau s’est arrêté et redémarre de lui-même",
    "El escritorio se ha detenido y se reinicia por sí solo",
  ],
  "state.failed": [
    "The desktop could not be started",
    "Der Desktop konnte nicht gestartet werden",
    "Le bureau n’a pas pu démarrer",
    "No se ha podido iniciar el escritorio",
  ],
  "state.stopping": [
    "The desktop is shutting down",
    "Der Desktop wird beendet",
    "Le bureau s’arrête",
    "El escritorio se está cerrando",
  ],

  "backoff.soon": [
    "The next start follows in about {duration}.",
    "Der nächste Start folgt in etwa {duration}.",
    "Le prochain démarrage aura lieu dans environ {duration}.",
    "El próximo inicio será dentro de unos {duration}.",
  ],
  "failed.given-up": [
    "It was tried {attempt} times.",
    "Es wurde {attempt}-mal versucht.",
    "{attempt} essais ont été faits.",
    "Se ha intentado {attempt} veces.",
  ],

  "cause.no-vnc-server": [
    "No VNC server is installed. TigerVNC and TurboVNC both serve well.",
    "Es ist kein VNC-Server installiert. TigerVNC und TurboVNC eignen sich beide gut.",
    "Aucun serveur VNC n’est installé. TigerVNC et TurboVNC conviennent tous deux.",
    "No hay ningún servidor VNC instalado. Tanto TigerVNC como TurboVNC sirven.",
  ],
  "cause.no-desktop": [
    "No desktop environment is installed, not even a bare window manager.",
    "Es ist keine Desktop-Umgebung installiert, nicht einmal ein einfacher Fenstermanager.",
    "Aucun environnement de bureau n’est installé, pas même un simple gestionnaire de fenêtres.",
    "No hay ningún entorno de escritorio instalado, ni siquiera un gestor de ventanas sencillo.",
  ],
  "cause.desktop-exited": [
    "The desktop session {exit}{after}.",
    "Die Sitzung des Desktops {exit}{after}.",
    "La session du bureau {exit}{after}.",
    "La sesión del escritorio {exit}{after}.",
  ],
  "cause.vnc-exited": [
    "The VNC server {exit}{after}.",
    "Der VNC-Server {exit}{after}.",
    "Le serveur VNC {exit}{after}.",
    "El servidor VNC {exit}{after}.",
  ],
  "cause.internal": [
    "Something went wrong in the server itself.",
    "Im Server selbst ist etwas schiefgegangen.",
    "Un problème est survenu dans le serveur lui-même.",
    "Algo ha fallado en el propio servidor.",
  ],
  "cause.vnc-timeout": [
    "The VNC server was started, but did not answer within {timeout}.",
    "Der VNC-Server wurde gestartet, hat aber nicht innerhalb von {timeout} geantwortet.",
    "Le serveur VNC a été lancé, mais n’a pas répondu en {timeout}.",
    "El servidor VNC se ha iniciado, pero no ha respondido en {timeout}.",
  ],
  "cause.vnc-unreachable": [
    "The VNC server at {target} cannot be reached: {error}.",
    "Der VNC-Server unter {target} ist nicht erreichbar: {error}.",
    "Le serveur VNC à l’adresse {target} est injoignable : {error}.",
    "No se puede acceder al servidor VNC en {target}: {error}.",
  ],
  "cause.not-vnc": [
    "Something answers at {target}, but it is not a VNC server.",
    "Unter {target} antwortet etwas, aber kein VNC-Server.",
    "Quelque chose répond à l’adresse {target}, mais ce n’est pas un serveur VNC.",
    "Algo responde en {target}, pero no es un servidor VNC.",
  ],
  "cause.unwritable": [
    "The folder {path} cannot be written to.",
    "In den Ordner {path} kann nicht geschrieben werden.",
    "Le dossier {path} n’est pas accessible en écriture.",
    "No se puede escribir en la carpeta {path}.",
  ],
  "cause.disk-full": [
    "The disk that holds {path} is full. Free some space on it, then try again.",
    "Der Datenträger mit {path} ist voll. Schaffen Sie dort Platz und versuchen Sie es dann noch einmal.",
    "Le disque qui contient {path} est plein. Libérez-y de la place, puis réessayez.",
    "El disco que contiene {path} está lleno. Libere espacio y vuelva a intentarlo.",
  ],
  "cause.logged-out": [
    "You logged out. Your files are still there.",
    "Sie haben sich abgemeldet. Ihre Dateien sind noch da.",
    "Vous avez fermé la session. Vos fichiers sont toujours là.",
    "Ha cerrado la sesión. Sus archivos siguen ahí.",
  ],
  "cause.stopped": [
    "It was stopped on request. Your files are still there.",
    "Er wurde auf Wunsch beendet. Ihre Dateien sind noch da.",
    "Il a été arrêté sur demande. Vos fichiers sont toujours là.",
    "Se ha detenido a petición. Sus archivos siguen ahí.",
  ],
  "cause.idle": [
    "It was stopped because nobody used it. Your files are still there.",
    "Er wurde beendet, weil niemand ihn benutzt hat. Ihre Dateien sind noch da.",
    "Il a été arrêté parce que personne ne l’utilisait. Vos fichiers sont toujours là.",
    "Se ha detenido porque nadie lo usaba. Sus archivos siguen ahí.",
  ],
  "cause.vnc-password": [
    "The VNC server asks for a password. Start this server with --vnc-password-file and a file that holds it.",
    "Der VNC-Server verlangt ein Passwort. Starten Sie diesen Server mit --vnc-password-file und einer Datei, in der es steht.",
    "Le serveur VNC demande un mot de passe. Lancez ce serveur avec --vnc-password-file et un fichier qui le contient.",
    "El servidor VNC pide una contraseña. Inicie este servidor con --vnc-password-file y un archivo que la contenga.",
  ],
  "cause.too-many-viewers": [
    "{limit} people see this desktop, and it takes no more. Close a page that shows it, or start the server with a higher --max-viewers.",
    "{limit} Personen sehen diesen Desktop, mehr nimmt er nicht an. Schließen Sie eine Seite, die ihn zeigt, oder starten Sie den Server mit einem höheren --max-viewers.",
    "{limit} personnes voient ce bureau, et il n’en accepte pas davantage. Fermez une page qui l’affiche, ou lancez le serveur avec un --max-viewers plus élevé.",
    "{limit} personas ven este escritorio y no admite más. Cierre una página que lo muestre o inicie el servidor con un --max-viewers mayor.",
  ],
  "cause.unknown": [
    "The server gives this reason: {cause}.",
    "Der Server nennt diesen Grund: {cause}.",
    "Le serveur donne cette raison : {cause}.",
    "El servidor da este motivo: {cause}.",
  ],

  "exit.code": [
    "ended with exit code {code}",
    "endete mit dem Exit-Code {code}",
    "s’est terminé avec le code {code}",
    "terminó con el código {code}",
  ],
  "exit.signal": [
    "was ended by the signal {signal}",
    "endete durch das Signal {signal}",
    "a pris fin par le signal {signal}",
    "terminó por la señal {signal}",
  ],
  "exit.unknown": ["ended", "endete", "a pris fin", "terminó"],
  "exit.after": [" after {duration}", " nach {duration}", " après {duration}", " tras {duration}"],
  "detail.xstartup": [
    "It was started by {xstartup}.",
    "Das Startskript war {xstartup}.",
    "Le script de démarrage était {xstartup}.",
    "El script de inicio fue {xstartup}.",
  ],
  "detail.command": [
    "It was started with this command: {command}.",
    "Der Startbefehl war: {command}.",
    "La commande de démarrage était : {command}.",
    "La orden de inicio fue: {command}.",
  ],
  "detail.error": [
    "The system says: {error}.",
    "Das System meldet: {error}.",
    "Le système indique : {error}.",
    "El sistema indica: {error}.",
  ],
  "hint.126": [
    "Exit code 126 means that a file is there, but must not be executed.",
    "Exit-Code 126 heißt: Eine Datei ist da, darf aber nicht ausgeführt werden.",
    "Le code 126 signifie qu’un fichier est là, mais ne peut pas être exécuté.",
    "El código 126 significa que un archivo existe, pero no se puede ejecutar.",
  ],
  "hint.127": [
    "Exit code 127 means that a command was not found: the log below names it.",
    "Exit-Code 127 heißt: Ein Befehl wurde nicht gefunden; das Protokoll unten nennt ihn.",
    "Le code 127 signifie qu’une commande est introuvable : le journal ci-dessous la nomme.",
    "El código 127 significa que no se ha encontrado una orden: el registro de abajo la nombra.",
  ],

  "command.intro": [
    "Type this in a terminal, then try again:",
    "Geben Sie das in einem Terminal ein und versuchen Sie es dann noch einmal:",
    "Tapez ceci dans un terminal, puis réessayez :",
    "Escriba esto en un terminal y vuelva a intentarlo:",
  ],
  "command.copy": ["Copy", "Kopieren", "Copier", "Copiar"],
  "command.copied": ["Copied", "Kopiert", "Copié", "Copiado"],
  "log.title": [
    "Last lines of the log",
    "Letzte Zeilen des Protokolls",
    "Dernières lignes du journal",
    "Últimas líneas del registro",
  ],

  "action.start": [
    "Start a new session",
    "Neue Sitzung starten",
    "Démarrer une nouvelle session",
    "Iniciar una nueva sesión",
  ],
  "action.restart": ["Try again", "Noch einmal versuchen", "Réessayer", "Volver a intentarlo"],
  "action.retry": ["Try now", "Jetzt versuchen", "Essayer maintenant", "Intentar ahora"],
  "action.resume": ["Continue", "Weiter", "Continuer", "Continuar"],
  "action.reload": [
    "Reload the page",
    "Seite neu laden",
    "Recharger la page",
    "Volver a cargar la página",
  ],
  "action.login": ["Log in", "Anmelden", "Se connecter", "Iniciar sesión"],
  "action.refused": [
    "The server refused that.",
    "Der Server hat das abgelehnt.",
    "Le serveur l’a refusé.",
    "El servidor lo ha rechazado.",
  ],

  "keys.send": ["Press", "Drücken", "Appuyer", "Pulsar"],
  "keys.hold": ["Hold down", "Gedrückt halten", "Maintenir", "Mantener"],
  "keys.lock": [
    "In fullscreen, all keys go to the desktop",
    "Im Vollbild gehen alle Tasten an den Desktop",
    "En plein écran, toutes les touches vont au bureau",
    "En pantalla completa, todas las teclas van al escritorio",
  ],
  "keys.mac": [
    "⌘ is Ctrl on the desktop",
    "⌘ ist auf dem Desktop Strg",
    "⌘ est Ctrl sur le bureau",
    "⌘ es Ctrl en el escritorio",
  ],
  "keys.unload": [
    "Ask before this page is closed",
    "Vor dem Schließen der Seite fragen",
    "Demander avant de fermer la page",
    "Preguntar antes de cerrar la página",
  ],
  "key.ctrl": ["Ctrl", "Strg", "Ctrl", "Ctrl"],
  "key.alt": ["Alt", "Alt", "Alt", "Alt"],
  "key.shift": ["Shift", "Umschalt", "Maj", "Mayús"],
  "key.super": ["Super", "Super", "Super", "Super"],
  "key.esc": ["Esc", "Esc", "Échap", "Esc"],
  "key.tab": ["Tab", "Tab", "Tab", "Tab"],
  "key.delete": ["Del", "Entf", "Suppr", "Supr"],
  "key.print": ["Print", "Druck", "Impr écr", "Impr Pant"],
  "key.left": ["Left", "Links", "Gauche", "Izquierda"],
  "key.up": ["Up", "Auf", "Haut", "Arriba"],
  "key.right": ["Right", "Rechts", "Droite", "Derecha"],
  "key.down": ["Down", "Ab", "Bas", "Abajo"],
  "key.home": ["Home", "Pos1", "Début", "Inicio"],
  "key.end": ["End", "Ende", "Fin", "Fin"],
  "key.pageUp": ["PgUp", "Bild auf", "Page haut", "RePág"],
  "key.pageDown": ["PgDn", "Bild ab", "Page bas", "AvPág"],
  "fullscreen.locked": [
    "Hold Esc to leave fullscreen. The bar is at the top edge.",
    "Zum Verlassen des Vollbilds Esc gedrückt halten. Die Leiste ist am oberen Rand.",
    "Maintenez Échap pour quitter le plein écran. La barre est au bord supérieur.",
    "Mantenga pulsada Esc para salir de la pantalla completa. La barra está en el borde superior.",
  ],
  "fullscreen.edge": [
    "The bar is at the top edge.",
    "Die Leiste ist am oberen Rand.",
    "La barre est au bord supérieur.",
    "La barra está en el borde superior.",
  ],

  "touch.keyboard": [
    "On-screen keyboard",
    "Bildschirmtastatur",
    "Clavier à l’écran",
    "Teclado en pantalla",
  ],
  "touch.row": ["Further keys", "Weitere Tasten", "Autres touches", "Otras teclas"],
  "touch.trackpad": ["Trackpad mode", "Touchpad-Modus", "Mode pavé tactile", "Modo panel táctil"],

  "more.numbers": [
    "Connection numbers",
    "Werte der Verbindung",
    "Mesures de la connexion",
    "Datos de la conexión",
  ],
  "more.restart": [
    "Restart the desktop",
    "Desktop neu starten",
    "Redémarrer le bureau",
    "Reiniciar el escritorio",
  ],
  "more.stop": [
    "Stop the desktop",
    "Desktop beenden",
    "Arrêter le bureau",
    "Detener el escritorio",
  ],
  "more.hub": [
    "Hub control panel",
    "Hub-Verwaltung",
    "Panneau de contrôle du Hub",
    "Panel de control del Hub",
  ],
  "more.logout": ["Log out", "Abmelden", "Se déconnecter", "Cerrar sesión"],
  "confirm.body": [
    "All programs on it are closed. What is not saved is lost.",
    "Alle Programme darauf werden geschlossen. Was nicht gespeichert ist, geht verloren.",
    "Tous ses programmes seront fermés. Ce qui n’est pas enregistré sera perdu.",
    "Se cerrarán todos sus programas. Lo que no esté guardado se perderá.",
  ],

  "numbers.state": ["State", "Zustand", "État", "Estado"],
  "numbers.round-trip": ["Round trip", "Laufzeit", "Aller-retour", "Ida y vuelta"],
  "numbers.frames": ["Pictures", "Bilder", "Images", "Imágenes"],
  "numbers.received": ["Received", "Empfangen", "Reçu", "Recibido"],
  "numbers.sent": ["Sent", "Gesendet", "Envoyé", "Enviado"],
  "numbers.encoding": ["Encoding", "Kodierung", "Encodage", "Codificación"],
  "numbers.size": ["Size", "Größe", "Taille", "Tamaño"],
  "numbers.copy": [
    "Copy for support",
    "Für den Support kopieren",
    "Copier pour l’assistance",
    "Copiar para soporte",
  ],

  "unit.milliseconds": ["{n} ms", "{n} ms", "{n} ms", "{n} ms"],
  "unit.seconds": ["{n} s", "{n} s", "{n} s", "{n} s"],
  "unit.minutes": ["{n} min", "{n} min", "{n} min", "{n} min"],
  "unit.hours": ["{n} h", "{n} h", "{n} h", "{n} h"],
  "unit.frames": ["{n} a second", "{n} je Sekunde", "{n} par seconde", "{n} por segundo"],
  "unit.bytes": ["{n} B/s", "{n} B/s", "{n} o/s", "{n} B/s"],
  "unit.kilobytes": ["{n} kB/s", "{n} kB/s", "{n} ko/s", "{n} kB/s"],
  "unit.megabytes": ["{n} MB/s", "{n} MB/s", "{n} Mo/s", "{n} MB/s"],

  "files.help": [
    "Drop files or folders on the desktop, or choose them here. They go to the desktop’s folder, and replace nothing.",
    "Ziehen Sie Dateien oder Ordner auf den Desktop, oder wählen Sie sie hier. Sie landen im Ordner des Desktops und ersetzen nichts.",
    "Déposez des fichiers ou des dossiers sur le bureau, ou choisissez-les ici. Ils vont dans le dossier du bureau et ne remplacent rien.",
    "Suelte archivos o carpetas en el escritorio, o elíjalos aquí. Van a la carpeta del escritorio y no reemplazan nada.",
  ],
  "files.choose": ["Upload files", "Dateien hochladen", "Envoyer des fichiers", "Subir archivos"],
  "files.choose-folder": [
    "Upload a folder",
    "Ordner hochladen",
    "Envoyer un dossier",
    "Subir una carpeta",
  ],
  "files.drop": [
    "Drop the files to put them on the desktop",
    "Loslassen, um die Dateien auf den Desktop zu legen",
    "Déposez les fichiers pour les mettre sur le bureau",
    "Suelte los archivos para ponerlos en el escritorio",
  ],
  "files.desktop": ["On the desktop", "Auf dem Desktop", "Sur le bureau", "En el escritorio"],
  "files.up": ["One folder up", "Einen Ordner höher", "Dossier parent", "Carpeta superior"],
  "files.empty": [
    "There are no files here.",
    "Hier sind keine Dateien.",
    "Il n’y a aucun fichier ici.",
    "Aquí no hay archivos.",
  ],
  "files.more": [
    "And {n} more, which are not listed.",
    "Und {n} weitere, die nicht aufgeführt sind.",
    "Et {n} autres, qui ne sont pas listés.",
    "Y {n} más, que no se muestran.",
  ],
  "uploads.busy": [
    "Uploading: {done} of {all} done",
    "Hochladen: {done} von {all} fertig",
    "Envoi : {done} sur {all} terminés",
    "Subiendo: {done} de {all} listos",
  ],
  "uploads.done": [
    "Uploaded: {done} of {all}",
    "Hochgeladen: {done} von {all}",
    "Envoyés : {done} sur {all}",
    "Subidos: {done} de {all}",
  ],
  "uploads.close": ["Close the list", "Liste schließen", "Fermer la liste", "Cerrar la lista"],
  "uploads.cancel": ["Cancel {name}", "{name} abbrechen", "Annuler {name}", "Cancelar {name}"],
  "uploads.stalled": [
    "The connection was lost. It goes on by itself.",
    "Die Verbindung ist weg. Es geht von selbst weiter.",
    "La connexion est perdue. L’envoi reprendra tout seul.",
    "Se perdió la conexión. Continuará por sí solo.",
  ],
  "uploads.renamed": [
    "Saved as {name}",
    "Gespeichert als {name}",
    "Enregistré sous {name}",
    "Guardado como {name}",
  ],

  "share.may": [
    "Whoever has the link may",
    "Wer den Link hat, darf",
    "Qui a le lien peut",
    "Quien tenga el enlace puede",
  ],
  "share.watch": ["only watch", "nur zusehen", "seulement regarder", "solo mirar"],
  "share.control": [
    "use mouse and keyboard",
    "Maus und Tastatur benutzen",
    "utiliser souris et clavier",
    "usar ratón y teclado",
  ],
  "share.for": ["For", "Für", "Pendant", "Durante"],
  "share.hour": ["1 hour", "1 Stunde", "1 heure", "1 hora"],
  "share.hours": ["8 hours", "8 Stunden", "8 heures", "8 horas"],
  "share.day": ["1 day", "1 Tag", "1 jour", "1 día"],
  "share.name": [
    "Who it is for (optional)",
    "Für wen (freiwillig)",
    "Pour qui (facultatif)",
    "Para quién (opcional)",
  ],
  "share.make": ["Make a link", "Link erstellen", "Créer un lien", "Crear un enlace"],
  "share.address": ["The link", "Der Link", "Le lien", "El enlace"],
  "share.copied": [
    "The link is copied.",
    "Der Link ist kopiert.",
    "Le lien est copié.",
    "El enlace está copiado.",
  ],
  "share.links": ["Links", "Freigaben", "Liens", "Enlaces"],
  "share.people": ["Here now", "Jetzt hier", "Présents", "Aquí ahora"],
  "share.anyone": [
    "Anyone with the link",
    "Wer den Link hat",
    "Toute personne ayant le lien",
    "Cualquiera con el enlace",
  ],
  "share.watches": ["watches", "sieht zu", "regarde", "mira"],
  "share.controls": ["may control", "darf steuern", "peut contrôler", "puede controlar"],
  "share.owner": ["Owner", "Eigentümer", "Propriétaire", "Propietario"],
  "share.guest": ["Guest", "Gast", "Invité", "Invitado"],
  "share.until": ["until {time}", "bis {time}", "jusqu’à {time}", "hasta {time}"],
  "share.since": ["since {time}", "seit {time}", "depuis {time}", "desde {time}"],
  "share.end": ["End", "Beenden", "Terminer", "Terminar"],
  "share.end-of": [
    "End the link of {name}",
    "Link von {name} beenden",
    "Terminer le lien de {name}",
    "Terminar el enlace de {name}",
  ],
  "share.ended": [
    "The link has ended, and so has what came by it.",
    "Der Link gilt nicht mehr; wer durch ihn kam, ist getrennt.",
    "Le lien est terminé, et les connexions qui en venaient aussi.",
    "El enlace ha terminado, y también lo que entró por él.",
  ],
  "share.open": [
    "A link works for people who can reach this page anyway, such as through Jupyter’s log-in. Without the link they have all rights.",
    "Ein Link wirkt für alle, die diese Seite ohnehin erreichen, etwa nach der Anmeldung bei Jupyter. Ohne den Link haben sie alle Rechte.",
    "Un lien sert aux personnes qui atteignent déjà cette page, par exemple après connexion à Jupyter. Sans le lien, elles ont tous les droits.",
    "Un enlace sirve a quienes ya pueden llegar a esta página, por ejemplo tras iniciar sesión en Jupyter. Sin él tienen todos los derechos.",
  ],

  "guest.watch": ["You are watching", "Sie sehen zu", "Vous regardez", "Está mirando"],
  "guest.control": ["You are a guest", "Sie sind zu Gast", "Vous êtes invité", "Es un invitado"],
  "guest.over": [
    "This link has ended",
    "Dieser Link gilt nicht mehr",
    "Ce lien est terminé",
    "Este enlace ha terminado",
  ],
  "guest.over-body": [
    "It has expired, or the desktop’s owner has ended it. Ask for a new one to come back.",
    "Er ist abgelaufen, oder der Eigentümer des Desktops hat ihn beendet. Bitten Sie um einen neuen.",
    "Il a expiré, ou le propriétaire du bureau y a mis fin. Demandez-en un nouveau pour revenir.",
    "Ha caducado, o el propietario del escritorio lo ha terminado. Pida uno nuevo para volver.",
  ],
  "guest.leave": ["Leave", "Verlassen", "Quitter", "Salir"],

  "api.login": [
    "Your log-in has expired. Reload the page to log in again.",
    "Ihre Anmeldung ist abgelaufen. Laden Sie die Seite neu, um sich wieder anzumelden.",
    "Votre connexion a expiré. Rechargez la page pour vous reconnecter.",
    "Su sesión ha caducado. Recargue la página para iniciarla de nuevo.",
  ],
  "api.disk-full": [
    "The disk is full.",
    "Die Festplatte ist voll.",
    "Le disque est plein.",
    "El disco está lleno.",
  ],
  "api.too-large": [
    "It is larger than {limit}, which is the most that this server takes.",
    "Sie ist größer als {limit}; mehr nimmt dieser Server nicht.",
    "Il dépasse {limit}, le maximum accepté par ce serveur.",
    "Supera {limit}, el máximo que acepta este servidor.",
  ],
  "api.bad-name": [
    "The desktop cannot have a file of this name.",
    "Eine Datei dieses Namens kann es auf dem Desktop nicht geben.",
    "Le bureau ne peut pas avoir de fichier de ce nom.",
    "El escritorio no puede tener un archivo con este nombre.",
  ],
  "api.no-folder": [
    "Something else stands there where its folder should be.",
    "Wo ihr Ordner sein sollte, ist etwas anderes.",
    "Autre chose se trouve à la place de son dossier.",
    "Hay otra cosa donde debería estar su carpeta.",
  ],
  "api.no-such-file": [
    "It is not there any more.",
    "Sie ist nicht mehr da.",
    "Il n’est plus là.",
    "Ya no está ahí.",
  ],
  "api.unwritable": [
    "The desktop’s folder cannot be written to.",
    "In den Ordner des Desktops kann nicht geschrieben werden.",
    "Impossible d’écrire dans le dossier du bureau.",
    "No se puede escribir en la carpeta del escritorio.",
  ],
  "api.unreadable": [
    "This browser could not read it: it may have been moved or changed.",
    "Der Browser konnte sie nicht lesen: Vielleicht wurde sie verschoben oder geändert.",
    "Le navigateur n’a pas pu le lire : il a peut-être été déplacé ou modifié.",
    "El navegador no pudo leerlo: quizá se movió o se modificó.",
  ],
  "api.proxy": [
    "Something between this browser and the server takes no files.",
    "Etwas zwischen diesem Browser und dem Server lässt keine Dateien durch.",
    "Quelque chose entre ce navigateur et le serveur refuse les fichiers.",
    "Algo entre este navegador y el servidor no deja pasar archivos.",
  ],
  "api.too-many-uploads": [
    "Too many uploads are under way: try again later.",
    "Es laufen zu viele Uploads: Versuchen Sie es später noch einmal.",
    "Trop d’envois sont en cours : réessayez plus tard.",
    "Hay demasiadas subidas en curso: inténtelo más tarde.",
  ],
  "api.too-many-links": [
    "There are {limit} links already: end one of them first.",
    "Es gibt schon {limit} Links: Beenden Sie erst einen davon.",
    "Il y a déjà {limit} liens : terminez-en un d’abord.",
    "Ya hay {limit} enlaces: termine uno antes.",
  ],
  "api.no-watching": [
    "This VNC server cannot hold a viewer to watching. Only the TigerVNC that jupyter-desktop starts itself can.",
    "Dieser VNC-Server kann niemanden auf das Zusehen beschränken. Das kann nur das TigerVNC, das jupyter-desktop selbst startet.",
    "Ce serveur VNC ne peut pas limiter quelqu’un à regarder. Seul le TigerVNC que jupyter-desktop lance lui-même le peut.",
    "Este servidor VNC no puede limitar a nadie a mirar. Solo puede el TigerVNC que inicia jupyter-desktop.",
  ],
  "api.other": [
    "The server refused that ({code}).",
    "Der Server hat das abgelehnt ({code}).",
    "Le serveur a refusé ({code}).",
    "El servidor lo ha rechazado ({code}).",
  ],
} as const satisfies Record<string, Row>;

export type TextKey = keyof typeof table;
export type Values = Record<string, string | number>;
export type Text = (key: TextKey, values?: Values) => string;

/** Every key of the table, for who must know them all. */
export const textKeys = Object.keys(table) as TextKey[];

/** The cause codes that have a sentence of their own. */
export const causeCodes: readonly string[] = textKeys
  .filter((key) => key.startsWith("cause.") && key !== "cause.unknown")
  .map((key) => key.slice("cause.".length));

/** The first of the reader's languages that the table has, else English. */
export function chooseLanguage(wanted: readonly string[]): Language {
  for (const tag of wanted) {
    const known = languages.find((language) => language === tag.toLowerCase().split("-")[0]);
    if (known !== undefined) {
      return known;
    }
  }
  return "en";
}

/** Gives the look-up in the first of the reader's languages that the table has. */
export function createText(wanted: readonly string[]): Text {
  const language = chooseLanguage(wanted);
  const column = languages.indexOf(language);
  // No grouping: most numbers here are codes.
  const numbers = new Intl.NumberFormat(language, { useGrouping: false });
  return (key, values = {}) =>
    // A sentence with a hole says "?" rather than "undefined": the server may know less than it could.
    (table[key][column] ?? "").replace(/\{(\w+)\}/g, (_, name: string) => {
      const value = values[name] ?? "?";
      return typeof value === "number" ? numbers.format(value) : value;
    });
}

/** Tells a key of the table from any other string: markup names keys in data-text attributes. */
export function isTextKey(key: string): key is TextKey {
  return Object.hasOwn(table, key);
}

/** Writes a time span as a person says it: 280 ms, 1.5 s, 2 min. */
export function formatDuration(ms: number, text: Text): string {
  if (ms < 1000) {
    return text("unit.milliseconds", { n: Math.round(ms) });
  }
  if (ms < 10_000) {
    return text("unit.seconds", { n: Math.round(ms / 100) / 10 });
  }
  if (ms < 120_000) {
    return text("unit.seconds", { n: Math.round(ms / 1000) });
  }
  if (ms < 7_200_000) {
    return text("unit.minutes", { n: Math.round(ms / 60_000) });
  }
  return text("unit.hours", { n: Math.round(ms / 3_600_000) });
}

/** Writes a rate of bytes a second as a person says it. */
export function formatRate(bytesPerSecond: number, text: Text): string {
  if (bytesPerSecond < 1000) {
    return text("unit.bytes", { n: Math.round(bytesPerSecond) });
  }
  if (bytesPerSecond < 1_000_000) {
    return text("unit.kilobytes", { n: Math.round(bytesPerSecond / 1000) });
  }
  return text("unit.megabytes", { n: Math.round(bytesPerSecond / 100_000) / 10 });
}
