// SPDX-License-Identifier: MIT
// Http server ROOT | client URL ITEM…: the service of the tests (see app.py and client.py) by com.sun.net.httpserver and java.net.http.
import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.util.Arrays;
import java.util.HashMap;
import java.util.HexFormat;
import java.util.Map;
import java.util.Random;
import java.util.concurrent.Executors;

class Http {
  static void answer(HttpExchange exchange, Map<String, byte[]> files) throws IOException {
    byte[] sent = exchange.getRequestBody().readAllBytes();
    byte[] body = exchange.getRequestMethod().equals("POST") ? sent : files.get(exchange.getRequestURI().getPath());
    int status = body == null ? 404 : 200;
    // -1: no body; 0 would mean one of unknown length.
    exchange.sendResponseHeaders(status, body == null || body.length == 0 ? -1 : body.length);
    if (body != null && body.length > 0) exchange.getResponseBody().write(body);
    exchange.close();
  }

  static void serve(Path root) throws Exception {
    Map<String, byte[]> files = new HashMap<>();
    try (var entries = Files.list(root)) {
      for (Path file : entries.filter(Files::isRegularFile).toList()) files.put("/" + file.getFileName(), Files.readAllBytes(file));
    }
    HttpServer server = HttpServer.create(new InetSocketAddress(InetAddress.getByName("127.0.0.1"), 0), 128);
    server.createContext("/", exchange -> answer(exchange, files));
    server.setExecutor(Executors.newFixedThreadPool(4));
    server.start();
    System.out.println("PORT " + server.getAddress().getPort());
  }

  static void fetch(String url, String[] items) throws Exception {
    HttpClient client = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();
    for (String item : items) {
      boolean echo = item.startsWith("+");
      byte[] body = new byte[echo ? Integer.parseInt(item.substring(1)) : 0];
      new Random().nextBytes(body);
      HttpRequest.Builder request = HttpRequest.newBuilder(URI.create(url + (echo ? "/echo" : item)));
      if (echo) request.POST(HttpRequest.BodyPublishers.ofByteArray(body));
      HttpResponse<byte[]> response = client.send(request.build(), HttpResponse.BodyHandlers.ofByteArray());
      byte[] got = response.body();
      if (echo && !Arrays.equals(got, body)) throw new IOException(item + ": " + got.length + " bytes came back, and not the same");
      String sum = echo ? "echo" : HexFormat.of().formatHex(MessageDigest.getInstance("SHA-256").digest(got));
      System.out.println(response.statusCode() + " " + got.length + " " + sum);
    }
  }

  public static void main(String[] arguments) throws Exception {
    if (arguments[0].equals("server")) {
      serve(Path.of(arguments[1]));
    } else {
      fetch(arguments[1].replaceAll("/$", ""), Arrays.copyOfRange(arguments, 2, arguments.length));
      System.exit(0);  // the client's own threads
    }
  }
}
