// SPDX-License-Identifier: MIT
// A JVM takes SIGSEGV for its own ends (null checks, stack guard pages): it does so between the messages of a connection.
// Faults.java ROUNDS  prints "checked ROUNDS rounds, N null pointers, M stack overflows"
import java.io.DataInputStream;
import java.io.OutputStream;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.Socket;

class Faults {
  static final int MESSAGE_BYTES = 500;
  int field;

  static int read(Faults object) { return object.field; }  // compiled: a load from near address 0, no comparison

  static int dive(int depth) { return depth < 0 ? 0 : 1 + dive(depth + 1); }

  static void serve(ServerSocket listener) {
    try (Socket socket = listener.accept()) {
      byte[] buffer = new byte[MESSAGE_BYTES];
      DataInputStream in = new DataInputStream(socket.getInputStream());
      for (int n; (n = in.read(buffer)) > 0;) socket.getOutputStream().write(buffer, 0, n);
    } catch (Exception e) {
      e.printStackTrace();
      System.exit(1);
    }
  }

  public static void main(String[] arguments) throws Exception {
    int rounds = Integer.parseInt(arguments[0]);
    ServerSocket listener = new ServerSocket(0, 8, InetAddress.getByName("127.0.0.1"));
    Thread server = new Thread(() -> serve(listener));
    server.start();
    Faults present = new Faults();
    for (int i = 0; i < 50_000; i++) present.field += read(present) & 1;
    int nulls = 0, overflows = 0;
    try (Socket socket = new Socket(listener.getInetAddress(), listener.getLocalPort())) {
      DataInputStream in = new DataInputStream(socket.getInputStream());
      OutputStream out = socket.getOutputStream();
      byte[] sent = new byte[MESSAGE_BYTES], back = new byte[MESSAGE_BYTES];
      for (int round = 0; round < rounds; round++) {
        for (int i = 0; i < sent.length; i++) sent[i] = (byte) (round * 31 + i);
        out.write(sent);
        try {
          read(null);
        } catch (NullPointerException e) {
          nulls++;
        }
        if (round % 100 == 0) {
          try {
            dive(0);
          } catch (StackOverflowError e) {
            overflows++;
          }
        }
        in.readFully(back);
        if (!java.util.Arrays.equals(sent, back)) throw new IllegalStateException("round " + round + ": other bytes");
      }
    }
    server.join();
    System.out.println("checked " + rounds + " rounds, " + nulls + " null pointers, " + overflows + " stack overflows");
  }
}
